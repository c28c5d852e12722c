// Filters of images along their axes, and what blobs are found by; itkstream/numerics/gpu/filters.py
// calls these kernels. Sums have the order, and are rounded, as on the processors.

// Weighted sums along one axis of (before, length, after), one for every `factor` places.
extern "C" __global__ void filter_axis(const float *in, int before, int length, int after,
                                       int groups, const float *weights, int taps, int factor,
                                       int reach, float *out) {
    long long n = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= (long long)before * groups * after) return;
    int a = (int)(n % after), g = (int)(n / after % groups);
    const float *line = in + n / after / groups * length * after + a;
    float total = 0.0f;
    for (int t = 0; t < taps; t++) {
        int place = min(max(g * factor - reach + t, 0), length - 1);
        total += weights[t] * __ldg(line + (long long)place * after);
    }
    out[n] = total;
}

// Every second place along one axis of (before, length, after), by weights (1, 3, 3, 1) / 8.
template <class Value>
__device__ __forceinline__ void halve(const Value *in, int before, int length, int after, int half,
                                      float *out) {
    long long n = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= (long long)before * half * after) return;
    int a = (int)(n % after), k = 2 * (int)(n / after % half);
    const Value *line = in + n / after / half * length * after + a;
    Value inner = line[(long long)k * after] + line[(long long)(k + 1) * after];
    Value outer = line[(long long)max(k - 1, 0) * after] +
                  line[(long long)min(k + 2, length - 1) * after];
    out[n] = (float)((Value)0.375 * inner + (Value)0.125 * outer);
}

extern "C" __global__ void halve_32(const float *in, int before, int length, int after, int half,
                                    float *out) {
    halve(in, before, length, after, half, out);
}

extern "C" __global__ void halve_64(const double *in, int before, int length, int after, int half,
                                    float *out) {
    halve(in, before, length, after, half, out);
}

// Minus the Laplacian by the weights of the axes, 0 on the border. An axis of one place has none.
extern "C" __global__ void laplacian(const float *in, int nx, int ny, int nz, const float *weights,
                                     float *out) {
    int k = at_x(), j = at_y(), i = at_z();
    if (i >= nx || j >= ny || k >= nz) return;
    int edge = min(1, ny - 1);
    long long plane = (long long)ny * nz, row = (long long)edge * nz, p = i * plane + (long long)j * nz + k;
    float total = 0.0f;
    if (i > 0 && i < nx - 1 && j >= edge && j < ny - edge && k > 0 && k < nz - 1) {
        const float *here = in + p;
        total = 2.0f * (weights[0] + weights[1] + weights[2]) * __ldg(here);
        total -= weights[0] * (__ldg(here - plane) + __ldg(here + plane));
        total -= weights[1] * (__ldg(here - row) + __ldg(here + row));
        total -= weights[2] * (__ldg(here - 1) + __ldg(here + 1));
    }
    out[p] = total;
}

// Whether a voxel is positive and larger than its neighbours in space and scale; of equal ones the
// first in index order counts.
extern "C" __global__ void mark_maxima(const float *below, const float *here, const float *above,
                                       int nx, int ny, int nz, Bits8 *out) {
    int k = at_x(), j = at_y(), i = at_z();
    if (i >= nx || j >= ny || k >= nz) return;
    int edge = min(1, ny - 1);
    long long p = ((long long)i * ny + j) * nz + k;
    float value = __ldg(here + p);
    bool largest = value > 0.0f && i > 0 && i < nx - 1 && j >= edge && j < ny - edge && k > 0 &&
                   k < nz - 1;
    for (int a = -1; a <= 1 && largest; a++)
        for (int b = -edge; b <= edge && largest; b++)
            for (int c = -1; c <= 1 && largest; c++) {
                long long step = ((long long)a * ny + b) * nz + c;
                largest = value > __ldg(below + p + step) && value >= __ldg(above + p + step);
                if (step < 0) largest = largest && value > __ldg(here + p + step);
                if (step > 0) largest = largest && value >= __ldg(here + p + step);
            }
    out[p] = largest;
}
