/* Random networks and moves through settle.c, each compared with a full evaluation from the definition. */
#include <stdio.h>

#include "settle.c"

static uint64_t bits = 88172645463325252u;

static uint64_t next_bits(void) {
  bits ^= bits << 13;
  bits ^= bits >> 7;
  bits ^= bits << 17;
  return bits >> 20;
}

static int64_t below(int64_t bound) { return (int64_t)(next_bits() % (uint64_t)bound); }
static float number(void) { return (float)below(2001) / 1000 - 1; }

static double activated(int kind, double x) {
  if (kind == RELU) return x > 0 ? x : 0;
  if (kind == TANH) return tanh(x);
  return 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
}

static double loss(const Network *net, const double *logits, int64_t sample) {
  const int64_t classes = net->sizes[net->layers];
  const int32_t label = net->energy == KL_TO_TEACHER ? 0 : ((const int32_t *)net->targets)[sample];
  double largest = -INFINITY, other = -INFINITY, sum = 0, wanted = 0, all = 0;
  int64_t first = 0;
  for (int64_t c = 0; c < classes; ++c) {
    if (logits[c] > largest) largest = logits[c], first = c;
    if (c != label && logits[c] > other) other = logits[c];
    all += logits[c];
  }
  if (net->energy == ERROR_RATE) return first != label;
  if (net->energy == MARGIN_LOSS) return fmax(1 - (logits[label] - other) / net->scale, 0);
  for (int64_t c = 0; c < classes; ++c) {
    sum += exp((logits[c] - largest) * net->scale);
    if (net->energy == KL_TO_TEACHER) wanted += ((const float *)net->targets)[c * net->samples + sample] * logits[c];
  }
  if (net->energy == CROSS_ENTROPY) wanted = (1 - net->smoothing) * logits[label] + net->smoothing * all / classes;
  return log(sum) + (largest - wanted) * net->scale;
}

/* Fills the outputs of all layers, and returns the energy. */
static double full(const Network *net, float **outputs) {
  double total = 0, before[64], now[64];
  for (int64_t k = 0; k < net->samples; ++k) {
    for (int64_t i = 0; i < net->sizes[0]; ++i) before[i] = net->inputs[i * net->samples + k];
    for (int64_t l = 0; l < net->layers; ++l) {
      const int64_t width = net->sizes[l + 1];
      for (int64_t j = 0; j < width; ++j) {
        now[j] = 0;
        for (int64_t i = 0; i < net->sizes[l]; ++i)
          if (net->mask[net->starts[l] + i * width + j]) now[j] += (double)net->weights[l][i * width + j] * before[i];
        outputs[l][j * net->samples + k] = (float)now[j];
      }
      for (int64_t j = 0; j < width; ++j) before[j] = l < net->layers - 1 ? activated(net->activation, now[j]) : now[j];
    }
    total += loss(net, before, k);
  }
  return total / net->samples;
}

int main(void) {
  int accepted_moves = 0;
  for (int trial = 0; trial < 300; ++trial) {
    int64_t layers = 1 + below(5), sizes[7], starts[7] = {0}, samples = 1 + below(trial % 2 ? 40 : 600);
    for (int64_t l = 0; l <= layers; ++l) sizes[l] = 2 + below(l == layers || trial % 3 ? 9 : 40);
    for (int64_t l = 0; l < layers; ++l) starts[l + 1] = starts[l] + sizes[l] * sizes[l + 1];
    const int64_t total = starts[layers];
    /* Each array has exactly its size, so that the sanitizer sees what lies beyond. */
    float *weights = malloc(total * 4), *inputs = malloc(sizes[0] * samples * 4);
    float *outputs[6], *expected[6];
    const float *of_layers[6];
    uint8_t *mask = malloc(total);
    for (int64_t i = 0; i < total; ++i) weights[i] = number(), mask[i] = below(2) != 0;
    mask[0] = 1;
    mask[1] = 0;
    for (int64_t i = 0; i < sizes[0] * samples; ++i) inputs[i] = number();
    for (int64_t l = 0; l < layers; ++l) {
      outputs[l] = malloc(sizes[l + 1] * samples * 4);
      expected[l] = malloc(sizes[l + 1] * samples * 4);
      of_layers[l] = weights + starts[l];
    }
    const int energy = trial % 4;
    void *targets = malloc((energy == KL_TO_TEACHER ? sizes[layers] : 1) * samples * 4);
    for (int64_t i = 0; i < (energy == KL_TO_TEACHER ? sizes[layers] : 1) * samples; ++i) {
      if (energy == KL_TO_TEACHER) ((float *)targets)[i] = 1.0f / sizes[layers];
      else ((int32_t *)targets)[i] = (int32_t)below(sizes[layers]);
    }
    Network net = {.layers = layers, .samples = samples, .sizes = sizes, .starts = starts, .inputs = inputs,
                   .targets = targets, .mask = mask, .weights = of_layers, .outputs = outputs,
                   .activation = trial / 4 % 3, .energy = energy, .scale = 1.5f, .smoothing = trial % 5 ? 0 : 0.1f};
    const double before = full(&net, outputs);
    Move move = {below(total), below(total), 0.3f};
    while (!mask[move.pruned]) move.pruned = below(total);
    while (mask[move.grown]) move.grown = below(total);
    if (trial % 7 == 0) move.grown = move.pruned;
    const int accepts_it = below(3) != 0;
    const Reals reals = {move.nudge, 0, accepts_it ? -INFINITY : INFINITY, 1, (float)before, net.scale, net.smoothing};
    int32_t accepted;
    float found;
    if (!settle_one(&net, move, &reals, &accepted, &found) || accepted != accepts_it) return 2;
    const int swaps = move.grown != move.pruned;
    if (swaps) mask[move.pruned] = 0, mask[move.grown] = 1;
    else weights[move.pruned] += move.nudge;
    const double wanted = full(&net, expected);
    if (!(fabs(found - wanted) < 1e-4)) {
      /* Rounding may decide between two equal logits. */
      if (energy != ERROR_RATE) return printf("trial %d: energy %g, not %g\n", trial, found, wanted), 3;
    }
    if (!accepted) {
      if (swaps) mask[move.pruned] = 1, mask[move.grown] = 0;
      else weights[move.pruned] -= move.nudge;
      full(&net, expected);
    }
    for (int64_t l = 0; l < layers; ++l)
      for (int64_t i = 0; i < sizes[l + 1] * samples; ++i)
        if (!(fabsf(outputs[l][i] - expected[l][i]) < 1e-3f))
          return printf("trial %d, layer %d: %g, not %g\n", trial, (int)l, outputs[l][i], expected[l][i]), 4;
    accepted_moves += accepted;
    for (int64_t l = 0; l < layers; ++l) free(outputs[l]), free(expected[l]);
    free(weights), free(inputs), free(mask), free(targets);
  }
  free(plan_arena.memory), free(work_arena.memory), free(kept_arena.memory);
  printf("300 moves, %d accepted\n", accepted_moves);
  return 0;
}
