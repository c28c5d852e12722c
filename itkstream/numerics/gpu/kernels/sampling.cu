// Images and fields at mapped positions; itkstream/numerics/gpu/sampling.py calls these kernels.
//
// They do what the compiled functions of itkstream/numerics/sampling/interpolate.py do, in doubles,
// operation by operation, and are compiled without fused ones: results have the same bits.
//
// `map` is 24 doubles: 3 x 4 from indices to indices, the first voxel, 3 x 3 from vectors to
// indices. `sizes` is 14 whole numbers:
enum { PART = 0, START = 3, WHOLE = 6, OUT = 9, MOVES = 12, COMPONENTS = 13 };
// voxels of the part of the image that is here, where it begins, voxels of the whole image, those
// of the output, components of the vectors that move its voxels (0 for none), and of the field.

// Where a voxel of the output lies in the image.
__device__ __forceinline__ void find_place(const int *sizes, const double *map,
                                           const float *moves, int i, int j, int k, double *at) {
    double p = i + map[12], q = j + map[13], r = k + map[14];
    int components = sizes[MOVES];
    const float *move = moves + components * (((long long)i * sizes[OUT + 1] + j) * sizes[OUT + 2] + k);
    for (int axis = 0; axis < 3; axis++) {
        const double *row = map + 4 * axis, *vector = map + 15 + 3 * axis;
        at[axis] = row[0] * p + row[1] * q + row[3] + row[2] * r;
        if (components) at[axis] += vector[0] * __ldg(move) + vector[1] * __ldg(move + 1);
        if (components == 3) at[axis] += vector[2] * __ldg(move + 2);
    }
}

__device__ __forceinline__ bool is_inside(const int *sizes, const double *at) {
    for (int axis = 0; axis < 3; axis++)
        if (!(at[axis] >= -0.5 && at[axis] < sizes[WHOLE + axis] - 0.5)) return false;
    return true;
}

// The voxels below and above a place, clamped to the image, and the weight of the upper one. What
// is no place at all is the first voxel: nothing is read from beyond the image.
__device__ __forceinline__ void bracket(double x, int n, int &low, int &high, double &share) {
    bool between = x > 0.0 && x < n - 1;
    low = between ? (int)x : x >= n - 1 ? n - 1 : 0;
    share = between ? x - low : 0.0;
    high = between ? low + 1 : low;
}

__device__ __forceinline__ double mixed(double a, double b, double share) {
    return a + share * (b - a);
}

// Eight corners of a place in the part that is here, and the weights of the upper ones.
struct Corners {
    long long first, steps[3];
    double shares[3];
};

// Within the image the upper corner is a voxel further even where its weight is 0, as on the
// processors: a NaN there counts.
__device__ __forceinline__ Corners find_corners(const int *sizes, const double *at, bool within,
                                                int components) {
    Corners found;
    long long stride = components;
    found.first = 0;
    for (int axis = 2; axis >= 0; axis--) {
        int low = (int)at[axis], high = low + 1;
        found.shares[axis] = at[axis] - low;
        if (!within) bracket(at[axis], sizes[WHOLE + axis], low, high, found.shares[axis]);
        found.first += (low - sizes[START + axis]) * stride;
        found.steps[axis] = (high - low) * stride;
        stride *= sizes[PART + axis];
    }
    return found;
}

__device__ __forceinline__ Corners find_corners(const int *sizes, const double *at,
                                                int components) {
    bool within = true;
    for (int axis = 0; axis < 3; axis++)
        within = within && at[axis] >= 0.0 && at[axis] < sizes[WHOLE + axis] - 1;
    return find_corners(sizes, at, within, components);
}

template <class Value>
__device__ __forceinline__ double mix_corners(const Value *values, const Corners &c) {
    const Value *a = values + c.first, *b = a + c.steps[1];
    const Value *d = a + c.steps[0], *e = d + c.steps[1];
    long long next = c.steps[2];
    double v00 = mixed(__ldg(a), __ldg(a + next), c.shares[2]);
    double v01 = mixed(__ldg(b), __ldg(b + next), c.shares[2]);
    double v10 = mixed(__ldg(d), __ldg(d + next), c.shares[2]);
    double v11 = mixed(__ldg(e), __ldg(e + next), c.shares[2]);
    return mixed(mixed(v00, v01, c.shares[1]), mixed(v10, v11, c.shares[1]), c.shares[0]);
}

template <class Value>
__device__ __forceinline__ void warp_linear(const Value *image, const int *sizes,
                                            const double *map, const float *moves,
                                            const Value *background, Value *out) {
    int k = at_x(), j = at_y(), i = at_z();
    if (i >= sizes[OUT] || j >= sizes[OUT + 1] || k >= sizes[OUT + 2]) return;
    double at[3];
    find_place(sizes, map, moves, i, j, k, at);
    Value value = *background;
    if (is_inside(sizes, at)) value = (Value)mix_corners(image, find_corners(sizes, at, 1));
    out[((long long)i * sizes[OUT + 1] + j) * sizes[OUT + 2] + k] = value;
}

extern "C" __global__ void warp_linear_32(const float *image, const int *sizes, const double *map,
                                          const float *moves, const float *background,
                                          float *out) {
    warp_linear(image, sizes, map, moves, background, out);
}

extern "C" __global__ void warp_linear_64(const double *image, const int *sizes,
                                          const double *map, const float *moves,
                                          const double *background, double *out) {
    warp_linear(image, sizes, map, moves, background, out);
}

// Values are carried as they are, whatever their bits mean.
template <class Bits>
__device__ __forceinline__ void warp_nearest(const Bits *image, const int *sizes,
                                             const double *map, const float *moves,
                                             const Bits *background, Bits *out) {
    int k = at_x(), j = at_y(), i = at_z();
    if (i >= sizes[OUT] || j >= sizes[OUT + 1] || k >= sizes[OUT + 2]) return;
    double at[3];
    find_place(sizes, map, moves, i, j, k, at);
    Bits value = *background;
    if (is_inside(sizes, at)) {
        long long place = 0;
        for (int axis = 0; axis < 3; axis++) {
            // The sum rounds up to the next voxel where the place is just below a half.
            int near = min((int)(at[axis] + 0.5), sizes[WHOLE + axis] - 1);
            place = place * sizes[PART + axis] + near - sizes[START + axis];
        }
        value = __ldg(image + place);
    }
    out[((long long)i * sizes[OUT + 1] + j) * sizes[OUT + 2] + k] = value;
}

extern "C" __global__ void warp_nearest_8(const Bits8 *image, const int *sizes, const double *map,
                                          const float *moves, const Bits8 *background,
                                          Bits8 *out) {
    warp_nearest(image, sizes, map, moves, background, out);
}

extern "C" __global__ void warp_nearest_16(const Bits16 *image, const int *sizes,
                                           const double *map, const float *moves,
                                           const Bits16 *background, Bits16 *out) {
    warp_nearest(image, sizes, map, moves, background, out);
}

extern "C" __global__ void warp_nearest_32(const Bits32 *image, const int *sizes,
                                           const double *map, const float *moves,
                                           const Bits32 *background, Bits32 *out) {
    warp_nearest(image, sizes, map, moves, background, out);
}

extern "C" __global__ void warp_nearest_64(const Bits64 *image, const int *sizes,
                                           const double *map, const float *moves,
                                           const Bits64 *background, Bits64 *out) {
    warp_nearest(image, sizes, map, moves, background, out);
}

// Vectors of a field; outside it those of its edge.
extern "C" __global__ void sample_vectors(const float *field, const int *sizes, const double *map,
                                          const float *moves, float *out) {
    int k = at_x(), j = at_y(), i = at_z(), components = sizes[COMPONENTS];
    if (i >= sizes[OUT] || j >= sizes[OUT + 1] || k >= sizes[OUT + 2]) return;
    double at[3];
    find_place(sizes, map, moves, i, j, k, at);
    Corners corners = find_corners(sizes, at, components);
    float *value = out + components * (((long long)i * sizes[OUT + 1] + j) * sizes[OUT + 2] + k);
    for (int c = 0; c < components; c++) value[c] = (float)mix_corners(field + c, corners);
}

// As `sample_vectors` where axes are parallel and nothing moves: axis 2 is mixed last.
extern "C" __global__ void stretch_vectors(const float *field, const int *sizes,
                                           const double *map, float *out) {
    int k = at_x(), j = at_y(), i = at_z(), components = sizes[COMPONENTS];
    if (i >= sizes[OUT] || j >= sizes[OUT + 1] || k >= sizes[OUT + 2]) return;
    double at[3] = {map[0] * (i + map[12]) + map[3], map[5] * (j + map[13]) + map[7],
                    map[10] * (k + map[14]) + map[11]};
    Corners corners = find_corners(sizes, at, false, components);
    const long long *steps = corners.steps;
    const double *shares = corners.shares;
    float *value = out + components * (((long long)i * sizes[OUT + 1] + j) * sizes[OUT + 2] + k);
    for (int c = 0; c < components; c++) {
        double mean[2];
        for (int end = 0; end < 2; end++) {
            const float *low = field + corners.first + c + end * steps[2];
            const float *high = low + steps[0];
            mean[end] = mixed(mixed(__ldg(low), __ldg(low + steps[1]), shares[1]),
                              mixed(__ldg(high), __ldg(high + steps[1]), shares[1]), shares[0]);
        }
        value[c] = (float)mixed(mean[0], mean[1], shares[2]);
    }
}
