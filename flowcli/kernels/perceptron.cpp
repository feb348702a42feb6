// A SiLU perceptron with its Jacobian products, and the gradient of both, on one core in float32.
//
// The network is z_0 = W_e x + W_t w + b_e, z_{l+1} = [z_l +] W_l silu(z_l) + b_l, y = W_o silu(z_L) + b_o, with x a
// row's features and w its waves of time. A row may carry K tangents of x: they ride along as further rows ("streams")
// of the same products, dz_{l+1} = [dz_l +] W_l (silu'(z_l) dz_l).
//
// Rows go through all layers in tiles that stay in the cache, and widths are padded with zeros to whole vectors. Every
// row is computed by the same operations wherever it stands: its result depends on nothing else.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

// a product's block of ROWS rows and COLS vectors fills the registers
#if defined(__AVX512F__)
constexpr int BYTES = 64, ROWS = 6, COLS = 4;
#elif defined(__AVX__)
constexpr int BYTES = 32, ROWS = 6, COLS = 2;
#else
constexpr int BYTES = 16, ROWS = 4, COLS = 4;
#endif
constexpr int V = BYTES / sizeof(float);
constexpr int TILE_FLOATS = 1 << 12; // of one array of a tile
constexpr int NARROW = 4;            // outputs up to which they are dot products

typedef float vec __attribute__((vector_size(BYTES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(BYTES), aligned(4), may_alias));
#define INLINE static inline __attribute__((always_inline))

INLINE vec load(const float *p) { return *reinterpret_cast<const vec *>(p); }
INLINE void store(float *p, vec x) { *reinterpret_cast<vec *>(p) = x; }
INLINE vec all(float x) { return vec{} + x; }
static int up(int n, int to) { return (n + to - 1) / to * to; }

// ---------------------------------------------------------------- functions of vectors
// the smaller, or larger, of a bound and x; an x that is not a number stays so
INLINE vec at_most(float bound, vec x) {
#if defined(__AVX512F__)
    return (vec)_mm512_min_ps((__m512)all(bound), (__m512)x);
#else
    return x > bound ? all(bound) : x;
#endif
}

INLINE vec at_least(float bound, vec x) {
#if defined(__AVX512F__)
    return (vec)_mm512_max_ps((__m512)all(bound), (__m512)x);
#else
    return x < bound ? all(bound) : x;
#endif
}

// e^x for |x| <= 87, relative error 2e-7: x = n log 2 + r with |r| <= log(2) / 2, and the polynomial 1 + r + r^2 (...)
// whose largest relative error there is smallest
INLINE vec exponential(vec x) {
#if defined(__AVX512F__)
    vec n = (vec)_mm512_roundscale_ps((__m512)(x * 1.44269504f), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    const float round = 12582912.0f; // 1.5 * 2^23: what is added to it becomes whole
    vec n = x * 1.44269504f + round;
    ivec power = (ivec)n << 23;
    n -= round;
#endif
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f; // log 2 in two parts
    vec p = r * 8.31252e-3f + 4.189012e-2f;
    p = p * r + 1.6667114e-1f;
    p = p * r + 4.9999232e-1f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
#if defined(__AVX512F__)
    return (vec)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    return (vec)((ivec)p + power);
#endif
}

// z itself where e^-z is finite, else where silu comes to nothing
INLINE vec bounded(vec z) { return at_least(-87.0f, z); }

// 1 / (1 + e^-z) of a bounded z
INLINE vec gate(vec z) { return 1.0f / (1.0f + exponential(-at_most(87.0f, z))); }

INLINE float total(vec x) {
    float sum = 0;
#pragma GCC unroll 16
    for (int j = 0; j < V; j++) sum += x[j];
    return sum;
}

// ---------------------------------------------------------------- memory
// Aligned floats; products may read, and never use, a few behind the last.
class Floats {
  public:
    explicit Floats(size_t n) {
        void *p = nullptr;
        if (n && posix_memalign(&p, 64, (n + ROWS + V) * sizeof(float))) throw std::bad_alloc();
        at = static_cast<float *>(p);
    }
    ~Floats() { std::free(at); }
    Floats(const Floats &) = delete;
    Floats &operator=(const Floats &) = delete;
    operator float *() const { return at; }

  private:
    float *at = nullptr;
};

static void zero(float *p, size_t n) { std::fill_n(p, n, 0.0f); }

INLINE void copy(const float *from, int n, float *to) {
    if (n == 1) to[0] = from[0];
    else if (n == 2) to[0] = from[0], to[1] = from[1];
    else std::copy_n(from, n, to);
}

// The first `there` rows of an array (n x columns) into the first `rows` of a tile, from its column `at` on; the last
// one stands in for those behind it.
static void take(float *tile, int by_tile, int at, int rows, const float *from, int there, int columns, bool shared) {
    for (int r = 0; r < rows; r++)
        copy(from + (shared ? 0 : size_t(std::min(r, there - 1)) * columns), columns, tile + size_t(r) * by_tile + at);
}

static void give(const float *tile, int by_tile, int at, float *to, int there, int columns) {
    for (int r = 0; r < there; r++) copy(tile + size_t(r) * by_tile + at, columns, to + size_t(r) * columns);
}

// ---------------------------------------------------------------- products
// A matrix (depth x columns) in panels of at most COLS vectors, each row of a panel behind the last, padded.
static size_t packed(int depth, int columns) { return size_t(depth) * up(columns, V); }

static void pack(float *to, const float *from, int depth, int columns, size_t by_depth, size_t by_column) {
    for (int first = 0; first < columns; first += COLS * V) {
        int wide = std::min(COLS * V, up(columns - first, V)), there = std::min(wide, columns - first);
        for (int k = 0; k < depth; k++, to += wide) {
            const float *row = from + k * by_depth + first * by_column;
            for (int j = 0; j < there; j++) to[j] = row[j * by_column];
            zero(to + there, wide - there);
        }
    }
}

// c (ROWS x J vectors) = [c] + [bias] + a b; element (i, k) of a is a[i by_row + k by_depth], b a panel
template <int J>
static void block(int depth, const float *a, size_t by_row, size_t by_depth, const float *b, size_t by_b, float *c,
                  size_t by_c, bool add, const float *bias) {
    vec sum[ROWS][J] = {};
    for (int k = 0; k < depth; k++, a += by_depth, b += by_b) {
        vec row[J];
#pragma GCC unroll 8
        for (int j = 0; j < J; j++) row[j] = load(b + j * V);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 8
            for (int j = 0; j < J; j++) sum[i][j] += a[i * by_row] * row[j];
    }
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 8
        for (int j = 0; j < J; j++) {
            vec value = sum[i][j];
            if (bias) value += load(bias + j * V);
            if (add) value += load(c + i * by_c + j * V);
            store(c + i * by_c + j * V, value);
        }
}

using Block = decltype(&block<1>);
static Block block_of(int vectors) {
    static_assert(COLS <= 4);
    return vectors == 1 ? block<1> : vectors == 2 ? block<2> : vectors == 3 ? block<std::min(3, COLS)> : block<COLS>;
}

// c (rows x columns) = [c] + [bias] + a (rows x depth) b, with b packed; rows is a multiple of ROWS
static void product(int rows, int depth, int columns, const float *a, int by_a, const float *b, float *c, int by_c,
                    bool add, const float *bias) {
    for (int first = 0; first < columns; first += COLS * V) {
        int vectors = std::min(COLS, up(columns - first, V) / V);
        Block run = block_of(vectors);
        for (int r = 0; r < rows; r += ROWS)
            run(depth, a + size_t(r) * by_a, by_a, 1, b, size_t(vectors) * V, c + size_t(r) * by_c + first, by_c, add,
                bias ? bias + first : nullptr);
        b += size_t(depth) * vectors * V;
    }
}

// c (left x right, rows of up(right, V)) += a^T b of a (rows x left), b (rows x right)
static void transposed_product(int rows, int left, int right, const float *a, int by_a, const float *b, int by_b,
                               float *c) {
    int by_c = up(right, V);
    for (int first = 0; first < right; first += COLS * V) {
        Block run = block_of(std::min(COLS, up(right - first, V) / V));
        for (int l = 0; l < left; l += ROWS)
            run(rows, a + l, 1, by_a, b + first, by_b, c + size_t(l) * by_c + first, by_c, true, nullptr);
    }
}

// c (rows x columns) = [bias] + a (rows x depth) b^T for few columns: b's rows lie in steps of by_a, padded with zeros
static void narrow_product(int rows, int depth, int columns, const float *a, int by_a, const float *b, float *c,
                           int by_c, const float *bias) {
    for (int r = 0; r < rows; r++, a += by_a, c += by_c)
        for (int j = 0; j < columns; j++) {
            const float *other = b + size_t(j) * by_a;
            vec sum = {};
            for (int k = 0; k < depth; k += V) sum += load(a + k) * load(other + k);
            c[j] = total(sum) + (bias ? bias[j] : 0.0f);
        }
}

static void column_sums(int rows, int columns, const float *a, int by_a, float *sums) {
    for (int j = 0; j < columns; j += V) {
        vec sum = load(sums + j);
        for (int r = 0; r < rows; r++) sum += load(a + size_t(r) * by_a + j);
        store(sums + j, sum);
    }
}

// ---------------------------------------------------------------- activations of a tile
// a = silu(z), and behind it p_k = silu'(z) dz_k; slope and bend, the first two derivatives, where they are wanted
static void activate(size_t floats, int tangents, const float *z, float *a, float *slope, float *bend) {
    for (size_t i = 0; i < floats; i += V) {
        vec x = bounded(load(z + i)), g = gate(x), h = x * g;
        store(a + i, h);
        if (!slope && !tangents) continue;
        vec s = g + h * (1.0f - g);
        if (slope) store(slope + i, s);
        if (bend) store(bend + i, g * (1.0f - g) * (2.0f + x * (1.0f - 2.0f * g)));
        for (int k = 1; k <= tangents; k++) store(a + k * floats + i, load(z + k * floats + i) * s);
    }
}

// gz = [gz] + what ga, of an activation and its tangents, says of z, given what was kept on the way there
static void activate_back(size_t floats, int tangents, const float *ga, const float *slope, const float *bend,
                          const float *dz, float *gz, bool add) {
    for (size_t i = 0; i < floats; i += V) {
        vec s = load(slope + i), sum = load(ga + i) * s;
        if (tangents) {
            vec bent = {};
            for (int k = 1; k <= tangents; k++) {
                vec g = load(ga + k * floats + i), value = g * s;
                bent += g * load(dz + (k - 1) * floats + i);
                if (add) value += load(gz + k * floats + i);
                store(gz + k * floats + i, value);
            }
            sum += bent * load(bend + i);
        }
        if (add) sum += load(gz + i);
        store(gz + i, sum);
    }
}

// ---------------------------------------------------------------- the network
struct Shape {
    int features, waves, width, hidden, outputs, residual;
};

// Pointers to the tensors of the weights, or of their gradients: W_e, b_e, W_t, then W_l, b_l of each hidden layer,
// then W_o, b_o; each as torch keeps it, (out, in).
template <class Pointer> struct Tensors {
    Pointer *at;
    int hidden;
    Pointer of_event() const { return at[0]; }
    Pointer of_event_bias() const { return at[1]; }
    Pointer of_time() const { return at[2]; }
    Pointer matrix(int l) const { return at[3 + 2 * l]; } // l == hidden: the last layer's
    Pointer bias(int l) const { return at[4 + 2 * l]; }
};
using Weights = Tensors<const float *const>;

// Sizes that follow from the shape and the number of tangents.
struct Plan : Shape {
    int tangents, streams, seen, in, wide, out, most;
    size_t in_floats, layer_floats, row_floats;

    Plan(const Shape &shape, int k) : Shape(shape), tangents(k), streams(1 + k), seen(features + waves) {
        in = up(seen, V), wide = up(width, V), out = up(outputs, V); // of a row, padded
        most = std::max(TILE_FLOATS / (wide * streams) / ROWS * ROWS, ROWS); // rows of a tile
        // what is kept of a row for the gradient: inputs, and of each layer its activation and slope; with tangents z
        // of all streams, from which activations are computed again: they would fill the cache with twice as much
        in_floats = size_t(streams) * in;
        layer_floats = size_t(wide) * (k ? streams : 2);
        row_floats = in_floats + (hidden + 1) * layer_floats;
    }

    // Of layer l, in what is kept of a tile.
    float *layer(float *kept, int rows, int l) const { return kept + rows * (in_floats + l * layer_floats); }
};

// What a call reads: x (n, features), waves (n or 1, waves), directions (K, n or 1, features).
struct Inputs {
    int64_t n;
    const float *x, *waves, *directions;
    bool one_time, one_direction;
};

class Forward {
  public:
    Forward(const Plan &p, const Weights &weights)
        : p(p), in_size(packed(p.seen, p.width)), hidden_size(packed(p.width, p.width)),
          narrow(p.outputs <= NARROW),
          matrices(in_size + p.hidden * hidden_size + (narrow ? p.outputs * p.wide : packed(p.width, p.outputs))),
          biases(size_t(p.hidden + 1) * p.wide + p.out), z(size_t(p.streams) * p.most * p.wide),
          scratch(size_t(p.streams) * p.most * p.wide), ends(size_t(p.streams) * p.most * p.out) {
        // both maps of the first layer under each other
        for (int c = 0; c < p.width; c += COLS * V) {
            int there = std::min(COLS * V, p.width - c);
            float *panel = matrices + size_t(p.seen) * c;
            pack(panel, weights.of_event() + size_t(c) * p.features, p.features, there, 1, p.features);
            pack(panel + size_t(p.features) * up(there, V), weights.of_time() + size_t(c) * p.waves, p.waves, there, 1,
                 p.waves);
        }
        zero(biases, size_t(p.hidden + 1) * p.wide + p.out);
        std::copy_n(weights.of_event_bias(), p.width, biases + 0);
        for (int l = 0; l <= p.hidden; l++) {
            int columns = l == p.hidden ? p.outputs : p.width;
            float *to = matrices + in_size + l * hidden_size;
            if (l == p.hidden && narrow) {
                zero(to, size_t(columns) * p.wide);
                take(to, p.wide, 0, columns, weights.matrix(l), columns, p.width, false);
            } else pack(to, weights.matrix(l), p.width, columns, 1, p.width);
            std::copy_n(weights.bias(l), columns, biases + (l + 1) * p.wide);
        }
    }

    // Outputs of rows r .. r + there, padded, in `ends`; kept takes the inputs, and what the gradient needs (keep).
    const float *tile(const Inputs &inputs, int64_t r, int there, float *kept, bool keep) {
        int rows = up(there, ROWS), f = p.features;
        size_t one = size_t(rows) * p.wide;
        zero(kept, rows * p.in_floats);
        take(kept, p.in, 0, rows, inputs.x + r * f, there, f, false);
        take(kept, p.in, f, rows, inputs.waves + (inputs.one_time ? 0 : r * p.waves), there, p.waves, inputs.one_time);
        for (int k = 1; k < p.streams; k++) {
            const float *from = inputs.directions + (inputs.one_direction ? k - 1 : (k - 1) * inputs.n + r) * f;
            take(kept + size_t(k) * rows * p.in, p.in, 0, rows, from, there, f, inputs.one_direction);
        }
        map(rows, p.seen, p.width, kept, p.in, matrices, z, p.wide, false, biases);
        for (int l = 0; l <= p.hidden; l++) {
            float *a = scratch, *slope = nullptr;
            if (keep && p.tangents) std::copy_n(z + 0, p.streams * one, p.layer(kept, rows, l));
            else if (keep) a = p.layer(kept, rows, l), slope = a + one;
            activate(one, p.tangents, z, a, slope, nullptr);
            const float *matrix = matrices + in_size + l * hidden_size, *bias = biases + (l + 1) * p.wide;
            if (l < p.hidden) map(rows, p.width, p.width, a, p.wide, matrix, z, p.wide, p.residual, bias);
            else if (narrow) {
                narrow_product(rows, p.width, p.outputs, a, p.wide, matrix, ends, p.out, bias);
                narrow_product(p.tangents * rows, p.width, p.outputs, a + one, p.wide, matrix,
                               ends + size_t(rows) * p.out, p.out, nullptr);
            } else map(rows, p.width, p.outputs, a, p.wide, matrix, ends, p.out, false, bias);
        }
        return ends;
    }

  private:
    // one layer of all streams; tangents have no bias
    void map(int rows, int depth, int columns, const float *a, int by_a, const float *b, float *c, int by_c, bool add,
             const float *bias) {
        product(rows, depth, columns, a, by_a, b, c, by_c, add, bias);
        product(p.tangents * rows, depth, columns, a + size_t(rows) * by_a, by_a, b, c + size_t(rows) * by_c, by_c, add,
                nullptr);
    }

    const Plan &p;
    size_t in_size, hidden_size;
    bool narrow;
    Floats matrices, biases, z, scratch, ends;
};

// Where gradients of inputs go, of the same shapes; null: not wanted.
struct InputGradients {
    float *x, *waves, *directions;
    bool any() const { return x || waves || directions; }
};

class Backward {
  public:
    Backward(const Plan &p, const Weights &weights, const InputGradients &wanted)
        : p(p), wanted(wanted), in_size(wanted.any() ? packed(p.width, p.seen) : 0),
          hidden_size(packed(p.width, p.width)), in_sums(size_t(up(p.width, ROWS)) * p.in),
          hidden_sums(size_t(up(p.width, ROWS)) * p.wide),
          sums_size(in_sums + p.hidden * hidden_sums + size_t(up(p.outputs, ROWS)) * p.wide),
          biases_size(size_t(p.hidden + 1) * p.wide + p.out),
          matrices(in_size + p.hidden * hidden_size + packed(p.outputs, p.width)), sums(sums_size), biases(biases_size),
          ga(size_t(p.streams) * p.most * p.wide), gz(size_t(p.streams) * p.most * p.wide),
          again(p.tangents ? size_t(p.streams + 2) * p.most * p.wide : 0),
          ends(size_t(p.streams) * p.most * std::max(p.out, p.in)) {
        if (wanted.any()) {
            Floats both(size_t(p.width) * p.seen);
            take(both, p.seen, 0, p.width, weights.of_event(), p.width, p.features, false);
            take(both, p.seen, p.features, p.width, weights.of_time(), p.width, p.waves, false);
            pack(matrices, both, p.width, p.seen, p.seen, 1);
        }
        for (int l = 0; l <= p.hidden; l++) {
            int depth = l == p.hidden ? p.outputs : p.width;
            pack(matrices + in_size + l * hidden_size, weights.matrix(l), depth, p.width, p.width, 1);
        }
        zero(sums, sums_size), zero(biases, biases_size);
    }

    // Where the gradients of a tile's padded outputs belong; zeros.
    float *cleared(int rows) {
        zero(ends, size_t(p.streams) * rows * p.out);
        return ends;
    }

    // Rows r .. r + there of n, whose outputs' gradients are in `ends`, given what was kept of them.
    void tile(int64_t n, int64_t r, int there, float *kept) {
        int rows = up(there, ROWS), every = p.streams * rows;
        size_t one = size_t(rows) * p.wide;
        for (int l = p.hidden; l >= 0; l--) {
            bool last = l == p.hidden;
            float *layer = p.layer(kept, rows, l), *a = layer, *slope = layer + one;
            if (p.tangents) {
                a = again, slope = again + p.streams * one;
                activate(one, p.tangents, layer, a, slope, slope + one);
            }
            const float *g = last ? ends : gz;
            int columns = last ? p.outputs : p.width, by = last ? p.out : p.wide;
            transposed_product(every, columns, p.width, g, by, a, p.wide, sums + in_sums + l * hidden_sums);
            column_sums(rows, by, g, by, biases + (l + 1) * p.wide);
            product(every, columns, p.width, g, by, matrices + in_size + l * hidden_size, ga, p.wide, false, nullptr);
            bool add = !last && p.residual;
            activate_back(one, p.tangents, ga, slope, slope + one, layer + one, gz, add);
        }
        transposed_product(every, p.width, p.seen, gz, p.wide, kept, p.in, sums);
        column_sums(rows, p.wide, gz, p.wide, biases);
        if (!wanted.any()) return;
        product(every, p.width, p.seen, gz, p.wide, matrices, ends, p.in, false, nullptr);
        if (wanted.x) give(ends, p.in, 0, wanted.x + r * p.features, there, p.features);
        if (wanted.waves) give(ends, p.in, p.features, wanted.waves + r * p.waves, there, p.waves);
        for (int k = 0; wanted.directions && k < p.tangents; k++)
            give(ends + size_t(k + 1) * rows * p.in, p.in, 0, wanted.directions + (k * n + r) * p.features, there,
                 p.features);
    }

    void finish(const Tensors<float *const> &to) {
        give(sums, p.in, 0, to.of_event(), p.width, p.features);
        give(biases, p.wide, 0, to.of_event_bias(), 1, p.width);
        give(sums, p.in, p.features, to.of_time(), p.width, p.waves);
        for (int l = 0; l <= p.hidden; l++) {
            int columns = l == p.hidden ? p.outputs : p.width;
            give(sums + in_sums + l * hidden_sums, p.wide, 0, to.matrix(l), columns, p.width);
            give(biases + (l + 1) * p.wide, p.wide, 0, to.bias(l), 1, columns);
        }
    }

  private:
    const Plan &p;
    const InputGradients wanted;
    size_t in_size, hidden_size, in_sums, hidden_sums, sums_size, biases_size;
    Floats matrices, sums, biases, ga, gz, again, ends;
};

// ---------------------------------------------------------------- what Python calls; 0, or 1: there is no memory
template <class Work> static int guarded(Work work) {
    try {
        work();
        return 0;
    } catch (const std::bad_alloc &) {
        return 1;
    }
}

extern "C" {

// Floats that a row needs in `kept`.
int64_t perceptron_kept(const Shape *shape, int tangents) { return int64_t(Plan(*shape, tangents).row_floats); }

// Parts of the rows begin at multiples of this.
int perceptron_step(void) { return ROWS; }

// y (n, outputs) and products (K, n, outputs) of rows first .. last.
// kept: null, or perceptron_kept floats for each row up to a multiple of perceptron_step, for perceptron_backward.
int perceptron_forward(const Shape *shape, const float *const *weights, int tangents, const Inputs *inputs,
                       int64_t first, int64_t last, float *y, float *products, float *kept) {
    return guarded([=] {
        Plan p(*shape, tangents);
        Forward forward(p, {weights, p.hidden});
        Floats inputs_alone(kept ? 0 : p.in_floats * p.most);
        for (int64_t r = first; r < last; r += p.most) {
            int there = int(std::min<int64_t>(last - r, p.most)), rows = up(there, ROWS), d = p.outputs;
            const float *ends = forward.tile(*inputs, r, there, kept ? kept + r * p.row_floats : inputs_alone, kept);
            give(ends, p.out, 0, y + r * d, there, d);
            for (int k = 0; k < tangents; k++)
                give(ends + size_t(k + 1) * rows * p.out, p.out, 0, products + (k * inputs->n + r) * d, there, d);
        }
    });
}

// Gradients of sum(gy y) + sum(gproducts products) over rows first .. last, given what perceptron_forward kept of them.
// gradients: of the weights, written; of: those of the inputs, of these rows. gy, gproducts: null is zeros.
int perceptron_backward(const Shape *shape, const float *const *weights, int tangents, int64_t n, int64_t first,
                        int64_t last, float *kept, const float *gy, const float *gproducts, float *const *gradients,
                        const InputGradients *of) {
    return guarded([=] {
        Plan p(*shape, tangents);
        Backward backward(p, {weights, p.hidden}, *of);
        for (int64_t r = first; r < last; r += p.most) {
            int there = int(std::min<int64_t>(last - r, p.most)), rows = up(there, ROWS), d = p.outputs;
            float *ends = backward.cleared(rows);
            if (gy) take(ends, p.out, 0, there, gy + r * d, there, d, false);
            for (int k = 0; gproducts && k < tangents; k++)
                take(ends + size_t(k + 1) * rows * p.out, p.out, 0, there, gproducts + (k * n + r) * d, there, d,
                     false);
            backward.tile(n, r, there, kept + r * p.row_floats);
        }
        backward.finish({gradients, p.hidden});
    });
}

// Of rows first .. last: the sum of weight |y - target|^2 (weight null: 1), and scale times its gradient, written.
int perceptron_regression(const Shape *shape, const float *const *weights, const Inputs *inputs, int64_t first,
                          int64_t last, const float *target, const float *weight, float scale, double *loss,
                          float *const *gradients) {
    return guarded([=] {
        Plan p(*shape, 0);
        Forward forward(p, {weights, p.hidden});
        Backward backward(p, {weights, p.hidden}, {nullptr, nullptr, nullptr});
        Floats kept(p.row_floats * p.most);
        double sum = 0;
        for (int64_t r = first; r < last; r += p.most) {
            int there = int(std::min<int64_t>(last - r, p.most)), d = p.outputs;
            const float *y = forward.tile(*inputs, r, there, kept, true);
            float *g = backward.cleared(up(there, ROWS));
            for (int i = 0; i < there; i++) {
                float own = weight ? weight[r + i] : 1.0f, squares = 0;
                for (int j = 0; j < d; j++) {
                    float off = y[size_t(i) * p.out + j] - target[(r + i) * d + j];
                    squares += off * off;
                    g[size_t(i) * p.out + j] = 2.0f * scale * own * off;
                }
                sum += double(own) * squares;
            }
            backward.tile(inputs->n, r, there, kept);
        }
        backward.finish({gradients, p.hidden});
        *loss = sum;
    });
}

}
