// Adam and the running average of the weights in one pass, in float32: what flowcli/training/adam.py and step.py write
// with one operation of torch a line.
#include <cmath>
#include <cstdint>

struct Rates {
    float decay, size, scale, memory, beta_1, beta_2, epsilon, clip; // clip: infinite where there is none
};

extern "C" {

// One step in place on (n) each; returns the gradient's norm. Where that is not finite nothing is touched.
double adam(int64_t n, float *__restrict weights, float *__restrict first, float *__restrict second,
            float *__restrict average, const float *__restrict gradient, const Rates *rates) {
    constexpr int LANES = 64;
    float squares[LANES] = {};
    int64_t whole = n / LANES * LANES;
    for (int64_t i = 0; i < whole; i += LANES)
        for (int j = 0; j < LANES; j++) squares[j] += gradient[i + j] * gradient[i + j];
    double sum = 0;
    for (int64_t i = whole; i < n; i++) sum += double(gradient[i]) * gradient[i];
    for (int j = 0; j < LANES; j++) sum += squares[j];
    double norm = std::sqrt(sum);
    if (!std::isfinite(norm)) return norm;

    const Rates r = *rates;
    const float shrink = float(std::fmin(1.0, r.clip / (norm + 1e-6)));
    for (int64_t i = 0; i < n; i++) {
        float g = gradient[i] * shrink;
        float m = first[i] + (1 - r.beta_1) * (g - first[i]);
        float v = r.beta_2 * second[i] + (1 - r.beta_2) * g * g;
        float w = weights[i] * r.decay - r.size * m / (std::sqrt(v) / r.scale + r.epsilon);
        first[i] = m, second[i] = v, weights[i] = w;
        average[i] += (1 - r.memory) * (w - average[i]);
    }
    return norm;
}

}
