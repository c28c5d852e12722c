// Window sums of two images, and correlations from them; itkstream/numerics/gpu/windows.py and
// itkstream/numerics/deformation/gpu/correlation.py call these kernels.
//
// `code` is offset and scale of the values of either image, whole numbers on that lattice, and the
// least count of a window. Sums of such numbers are exact in doubles, and what follows is rounded
// as on the processors.
//
// What is written is nothing that is read, and said so: else `code` is read again each time.

// Lines of voxels whose correlations one thread adds up.
#define LINES 16

// A quarter of a step of the lattice of values, squared.
#define LEAST_VARIANCE 0.0625

// Both values of a voxel on their lattices of values; false where one does not count.
__device__ __forceinline__ bool coded(const float *a, const float *b, long long p,
                                      const double *code, double &x, double &y) {
    x = rint(((double)__ldg(a + p) - code[0]) * code[1]);
    y = rint(((double)__ldg(b + p) - code[2]) * code[3]);
    return x == x && y == y;
}

__device__ __forceinline__ void add_pair(const float *a, const float *b, long long p,
                                         const double *code, double sign, double *sums) {
    double x, y;
    if (!coded(a, b, p, code, x, y)) return;
    sums[0] += sign;
    sums[1] += sign * x;
    sums[2] += sign * y;
    sums[3] += sign * x * x;
    sums[4] += sign * y * y;
    sums[5] += sign * x * y;
}

// Window sums along axis 0 for some planes: a thread runs along its column of them. As values are
// whole numbers that doubles add up exactly, running sums do not drift.
extern "C" __global__ void sum_planes(const float *a, const float *b, int nx, int plane,
                                      const double *__restrict__ code, int radius, int start,
                                      int planes, double *__restrict__ out) {
    int p = at_x();
    if (p >= plane) return;
    double sums[6] = {0.0, 0.0, 0.0, 0.0, 0.0, 0.0};
    for (int i = max(0, start - radius); i < min(nx, start + radius); i++)
        add_pair(a, b, (long long)i * plane + p, code, 1.0, sums);
    for (int i = start; i < start + planes; i++) {
        if (i + radius < nx) add_pair(a, b, (long long)(i + radius) * plane + p, code, 1.0, sums);
        if (i > start && i > radius)
            add_pair(a, b, (long long)(i - radius - 1) * plane + p, code, -1.0, sums);
        for (int q = 0; q < 6; q++)
            out[((long long)q * planes + i - start) * plane + p] = sums[q];
    }
}

// The same along axis 1, for (sheets, ny, nz).
extern "C" __global__ void sum_lines(const double *__restrict__ in, int sheets, int ny, int nz,
                                     int radius, double *__restrict__ out) {
    int k = at_x(), s = at_y();
    if (k >= nz || s >= sheets) return;
    long long first = (long long)s * ny * nz + k;
    double total = 0.0;
    for (int j = 0; j < min(radius, ny); j++) total += __ldg(in + first + (long long)j * nz);
    for (int j = 0; j < ny; j++) {
        if (j + radius < ny) total += __ldg(in + first + (long long)(j + radius) * nz);
        if (j > radius) total -= __ldg(in + first + (long long)(j - radius - 1) * nz);
        out[first + (long long)j * nz] = total;
    }
}

// Six sums along axis 2 of sums along the others.
__device__ __forceinline__ void add_along_line(const double *sums, int planes, int i, int ny, int j,
                                               int nz, int k, int radius, double *total) {
    for (int q = 0; q < 6; q++) {
        const double *line = sums + (((long long)q * planes + i) * ny + j) * nz;
        total[q] = 0.0;
        for (int d = max(k - radius, 0); d <= min(k + radius, nz - 1); d++)
            total[q] += __ldg(line + d);
    }
}

// Means, variances, covariance and squared correlation in a window.
struct Moments {
    double ma, mb, va, vb, vab, square;
};

// Those that follow from six sums; false where too few voxels count, or an image is constant.
__device__ __forceinline__ bool find_moments(const double *s, double least, Moments &m) {
    if (!(s[0] >= least)) return false;
    double n = s[0];
    m.ma = s[1] / n;
    m.mb = s[2] / n;
    m.va = s[3] / n - m.ma * m.ma;
    m.vb = s[4] / n - m.mb * m.mb;
    if (!(m.va >= LEAST_VARIANCE && m.vb >= LEAST_VARIANCE)) return false;
    m.vab = s[5] / n - m.ma * m.mb;
    m.square = m.vab * m.vab / (m.va * m.vb);
    return true;
}

// The sums along axis 2, and what follows from them: residual and weight of each voxel, and for
// each thread's lines the sum of squared correlations and the count of voxels.
extern "C" __global__ void correlate(const float *a, const float *b, int nx, int ny, int nz,
                                     const double *__restrict__ code,
                                     const double *__restrict__ sums, int radius, int start,
                                     int planes, int beside_others, float *__restrict__ residual,
                                     float *__restrict__ weight, double *__restrict__ totals) {
    int k = at_x(), strip = at_y(), i = at_z();
    int strips = (ny + LINES - 1) / LINES;
    if (k >= nz || strip >= strips || i >= planes) return;
    double total = 0.0, count = 0.0;
    for (int j = strip * LINES; j < min(strip * LINES + LINES, ny); j++) {
        long long p = ((long long)(start + i) * ny + j) * nz + k;
        float r = 0.0f, w = 0.0f;
        double x = ((double)a[p] - code[0]) * code[1], y = ((double)b[p] - code[2]) * code[3];
        if (x == x && y == y) {
            count += 1.0;
            double s[6];
            add_along_line(sums, planes, i, ny, j, nz, k, radius, s);
            Moments m;
            if (find_moments(s, code[4], m)) {
                r = (float)((x - m.ma - m.vab / m.vb * (y - m.mb)) / sqrt(m.va));
                w = (float)(m.vab / (sqrt(m.va) * m.vb) * code[3]);
                if (beside_others) {
                    double share = fmin(m.square, 1.0);
                    r = (float)(r * share * share);
                    w = (float)(w * share * share);
                }
                total += m.square;
            }
        }
        residual[p] = r;
        weight[p] = w;
    }
    long long mine = ((long long)(start + i) * strips + strip) * nz + k;
    totals[mine] = total;
    totals[(long long)nx * strips * nz + mine] = count;
}

// The squared correlation of the window around each voxel of some planes; NaN where it does not
// count.
extern "C" __global__ void correlate_windows(const float *a, const float *b, int ny, int nz,
                                             const double *__restrict__ code,
                                             const double *__restrict__ sums, int radius, int start,
                                             int planes, double *__restrict__ out) {
    int k = at_x(), j = at_y(), i = at_z();
    if (i >= planes || j >= ny || k >= nz) return;
    long long mine = ((long long)i * ny + j) * nz + k, p = (long long)start * ny * nz + mine;
    double square = 0.0;
    if (a[p] != a[p] || b[p] != b[p]) {
        square = nan("");
    } else {
        double s[6];
        add_along_line(sums, planes, i, ny, j, nz, k, radius, s);
        Moments m;
        if (find_moments(s, code[4], m)) square = fmin(m.square, 1.0);
    }
    out[mine] = square;
}
