// The kernels of a descent; itkstream/numerics/deformation/gpu/operations.py calls them.
//
// Maps are doubles: 3 x 4 from indices to indices, then 3 x 3 from vectors to indices.

__device__ __forceinline__ float mix(float a, float b, float f) { return a + f * (b - a); }

// The nodes below and above a voxel, and the weight of the upper one, which may leave [0, 1].
__device__ __forceinline__ void between(int i, int stride, int n, int &low, int &high, float &f) {
    double x = (i - 0.5 * (stride - 1)) / stride;
    low = min(max((int)floor(x), 0), max(n - 2, 0));
    high = min(low + 1, n - 1);
    f = (float)(x - low);
}

__device__ __forceinline__ bool inside(double x, int n) { return x >= -0.5 && x < n - 0.5; }

__device__ float sample_image(const float *image, int nx, int ny, int nz, double x, double y,
                              double z) {
    x = fmin(fmax(x, 0.0), nx - 1.0);
    y = fmin(fmax(y, 0.0), ny - 1.0);
    z = fmin(fmax(z, 0.0), nz - 1.0);
    int x0 = (int)x, y0 = (int)y, z0 = (int)z;
    int x1 = min(x0 + 1, nx - 1), y1 = min(y0 + 1, ny - 1), z1 = min(z0 + 1, nz - 1);
    float fx = (float)(x - x0), fy = (float)(y - y0), fz = (float)(z - z0);
    const float *a = image + ((long long)x0 * ny + y0) * nz;
    const float *b = image + ((long long)x0 * ny + y1) * nz;
    const float *c = image + ((long long)x1 * ny + y0) * nz;
    const float *d = image + ((long long)x1 * ny + y1) * nz;
    float v0 = mix(mix(__ldg(a + z0), __ldg(a + z1), fz), mix(__ldg(b + z0), __ldg(b + z1), fz), fy);
    float v1 = mix(mix(__ldg(c + z0), __ldg(c + z1), fz), mix(__ldg(d + z0), __ldg(d + z1), fz), fy);
    return mix(v0, v1, fx);
}

__device__ __forceinline__ double row_of(const double *maps, int r, int i, int j, int k) {
    const double *row = maps + 4 * r;
    return row[0] * i + row[1] * j + row[2] * k + row[3];
}

__device__ __forceinline__ double moved_by(const double *maps, int r, const float *u) {
    const double *row = maps + 12 + 3 * r;
    return row[0] * u[0] + row[1] * u[1] + row[2] * u[2];
}

// An image through a field on nodes: one voxel of the output for each thread.
extern "C" __global__ void warp_nodes(const float *moving, int nx, int ny, int nz,
                                      const double *maps, const float *nodes, int na, int nb,
                                      int nc, int sx, int sy, int sz, float *out, int ox, int oy,
                                      int oz) {
    int k = at_x(), j = at_y(), i = at_z();
    if (i >= ox || j >= oy || k >= oz) return;
    int a0, a1, b0, b1, c0, c1;
    float fa, fb, fc, u[3];
    between(i, sx, na, a0, a1, fa);
    between(j, sy, nb, b0, b1, fb);
    between(k, sz, nc, c0, c1, fc);
    const float *a = nodes + 3 * (((long long)a0 * nb + b0) * nc);
    const float *b = nodes + 3 * (((long long)a0 * nb + b1) * nc);
    const float *c = nodes + 3 * (((long long)a1 * nb + b0) * nc);
    const float *d = nodes + 3 * (((long long)a1 * nb + b1) * nc);
    for (int q = 0; q < 3; q++) {
        int low = 3 * c0 + q, high = 3 * c1 + q;
        float below = mix(mix(__ldg(a + low), __ldg(b + low), fb),
                          mix(__ldg(c + low), __ldg(d + low), fb), fa);
        float above = mix(mix(__ldg(a + high), __ldg(b + high), fb),
                          mix(__ldg(c + high), __ldg(d + high), fb), fa);
        u[q] = mix(below, above, fc);
    }
    double x = row_of(maps, 0, i, j, k) + moved_by(maps, 0, u);
    double y = row_of(maps, 1, i, j, k) + moved_by(maps, 1, u);
    double z = row_of(maps, 2, i, j, k) + moved_by(maps, 2, u);
    bool there = inside(x, nx) && inside(y, ny) && inside(z, nz);
    out[((long long)i * oy + j) * oz + k] =
        there ? sample_image(moving, nx, ny, nz, x, y, z) : nanf("");
}

// Central difference, one-sided beside a voxel without value, else 0.
__device__ __forceinline__ float slope(float before, float here, float after, float h) {
    if (before == before && after == after) return 0.5f * (after - before) / h;
    if (after == after) return (after - here) / h;
    if (before == before) return (here - before) / h;
    return 0.0f;
}

// Mean force of the voxels of each node, and the mean matrix where there are nine components.
extern "C" __global__ void collect_forces(const float *warped, const float *residual,
                                          const float *weight, int nx, int ny, int nz,
                                          double hx, double hy, double hz, int sx, int sy, int sz,
                                          int components, float *out, int na, int nb, int nc) {
    int c = at_x(), b = at_y(), a = at_z();
    if (a >= na || b >= nb || c >= nc) return;
    int x1 = min((a + 1) * sx, nx), y1 = min((b + 1) * sy, ny), z1 = min((c + 1) * sz, nz);
    long long plane = (long long)ny * nz;
    float sums[9] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    float none = nanf("");
    for (int i = a * sx; i < x1; i++)
        for (int j = b * sy; j < y1; j++)
            for (int k = c * sz; k < z1; k++) {
                long long p = i * plane + (long long)j * nz + k;
                float w = weight[p];
                if (w == 0.0f) continue;
                const float *v = warped + p;
                float here = v[0], r = residual[p];
                float x = w * slope(i > 0 ? __ldg(v - plane) : none, here,
                                    i < nx - 1 ? __ldg(v + plane) : none, (float)hx);
                float y = w * slope(j > 0 ? __ldg(v - nz) : none, here,
                                    j < ny - 1 ? __ldg(v + nz) : none, (float)hy);
                float z = w * slope(k > 0 ? __ldg(v - 1) : none, here,
                                    k < nz - 1 ? __ldg(v + 1) : none, (float)hz);
                sums[0] += r * x;
                sums[1] += r * y;
                sums[2] += r * z;
                sums[3] += x * x;
                sums[4] += y * y;
                sums[5] += z * z;
                sums[6] += x * y;
                sums[7] += x * z;
                sums[8] += y * z;
            }
    float voxels = (float)((x1 - a * sx) * (y1 - b * sy) * (z1 - c * sz));
    float *node = out + components * (((long long)a * nb + b) * nc + c);
    for (int q = 0; q < 9; q++)
        if (q < components) node[q] = sums[q] / voxels;
}

// (H + damping) v = g by the cofactors of the symmetric matrix a d e / d b f / e f c.
extern "C" __global__ void solve_newton(const float *normal, int nodes, double damping,
                                        float *out) {
    int n = at_x();
    if (n >= nodes) return;
    const float *g = normal + 9LL * n;
    double a = g[3] + damping, b = g[4] + damping, c = g[5] + damping;
    double d = g[6], e = g[7], f = g[8];
    double aa = b * c - f * f, bb = a * c - e * e, cc = a * b - d * d;
    double ab = e * f - d * c, ac = d * f - b * e, bc = d * e - a * f;
    double scale = 1.0 / (a * aa + d * ab + e * ac);
    out[3LL * n] = (float)((aa * g[0] + ab * g[1] + ac * g[2]) * scale);
    out[3LL * n + 1] = (float)((ab * g[0] + bb * g[1] + bc * g[2]) * scale);
    out[3LL * n + 2] = (float)((ac * g[0] + bc * g[1] + cc * g[2]) * scale);
}

// The Jacobian determinant of p + u(p): `to_index` is 3 x 3, from physical vectors to indices.
extern "C" __global__ void determinants(const float *field, int nx, int ny, int nz,
                                        const double *to_index, float *out) {
    int k = at_x(), j = at_y(), i = at_z();
    if (i >= nx || j >= ny || k >= nz) return;
    int size[3] = {nx, ny, nz}, place[3] = {i, j, k};
    long long step[3] = {3LL * ny * nz, 3LL * nz, 3LL};
    const float *here = field + i * step[0] + j * step[1] + k * step[2];
    double slopes[3][3], m[3][3];
    for (int axis = 0; axis < 3; axis++) {
        int low = place[axis] > 0, high = place[axis] < size[axis] - 1;
        for (int c = 0; c < 3; c++) {
            double rise = here[high * step[axis] + c] - here[c - low * step[axis]];
            slopes[c][axis] = rise / max(low + high, 1);
        }
    }
    for (int c = 0; c < 3; c++)
        for (int axis = 0; axis < 3; axis++) {
            m[c][axis] = c == axis;
            for (int q = 0; q < 3; q++) m[c][axis] += slopes[c][q] * to_index[3 * q + axis];
        }
    out[((long long)i * ny + j) * nz + k] =
        (float)(m[0][0] * (m[1][1] * m[2][2] - m[1][2] * m[2][1]) -
                m[0][1] * (m[1][0] * m[2][2] - m[1][2] * m[2][0]) +
                m[0][2] * (m[1][0] * m[2][1] - m[1][1] * m[2][0]));
}
