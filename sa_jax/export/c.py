"""A pruned network as C: one source file of constant tables, C99, no allocation, only math.h.

Each layer is stored in the form that takes the fewest bytes: dense; rows of kept branches, their inputs by 8-bit
steps or 16-bit numbers; or a bit for each branch and the kept weights.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from sa_jax.export.cleanup import Cleaned, predict
from sa_jax.types import InputError

# Golden vectors of the self-test, and how near its logits must come, of the largest one.
GOLDEN, TOLERANCE = 8, 1e-5
FORMS = ("dense", "steps8", "columns16", "bitmask")
ACTIVATIONS = {
    "relu": "x > 0.0f ? x : 0.0f",
    "tanh": "tanhf(x)",
    "gelu": "0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)))",
}
# Of each form: its tables' C types by name, its arguments, and how a row is summed.
FUNCTIONS = {
    "dense": """static void dense(const float *x, float *y, int inputs, int outputs, const float *values) {
    for (int o = 0; o < outputs; o++) {
        float sum = 0.0f;
        for (int i = 0; i < inputs; i++) sum += *values++ * x[i];
        y[o] += sum;
    }
}
""",
    "steps8": """/* Steps from one kept input to the next; 255 steps on without a weight. */
static void steps8(const float *x, float *y, int outputs, const uint16_t *counts, const uint8_t *steps,
                   const float *values) {
    for (int o = 0; o < outputs; o++) {
        float sum = 0.0f;
        const float *at = x;
        for (int n = counts[o]; n > 0; n--) {
            while (*steps == 255) { at += 255; steps++; }
            at += *steps++;
            sum += *values++ * *at;
        }
        y[o] += sum;
    }
}
""",
    "columns16": """static void columns16(const float *x, float *y, int outputs, const uint16_t *counts,
                      const uint16_t *columns, const float *values) {
    for (int o = 0; o < outputs; o++) {
        float sum = 0.0f;
        for (int n = counts[o]; n > 0; n--) sum += *values++ * x[*columns++];
        y[o] += sum;
    }
}
""",
    "bitmask": """/* One bit for each branch, row by row, the lowest of a byte first. */
static void bitmask(const float *x, float *y, int inputs, int outputs, const uint8_t *bits, const float *values) {
    long branch = 0;
    for (int o = 0; o < outputs; o++) {
        float sum = 0.0f;
        for (int i = 0; i < inputs; i++, branch++)
            if (bits[branch >> 3] >> (branch & 7) & 1) sum += *values++ * x[i];
        y[o] += sum;
    }
}
""",
}


class Stored(NamedTuple):
    """One layer in one form.

    Attributes:
      form: of `FORMS`.
      tables: arrays by name, in the order of the arguments.
      sizes: whether the call takes the number of inputs beside that of outputs.
    """

    form: str
    tables: dict[str, np.ndarray]
    sizes: bool

    @property
    def num_bytes(self) -> int:
        """Of all tables."""
        return sum(array.nbytes for array in self.tables.values())


def stored(kernel: np.ndarray, mask: np.ndarray, form: str) -> Stored | None:
    """A kernel `[inputs, outputs]` in one of `FORMS`; None where its numbers do not fit."""
    rows, kept = kernel.T, mask.T
    inputs, values = kernel.shape[0], kernel.T[mask.T].astype(np.float32)
    counts = kept.sum(1)
    if form == "dense":
        return Stored(form, {"values": np.ascontiguousarray(rows, np.float32).ravel()}, True)
    if form == "bitmask":
        return Stored(form, {"bits": np.packbits(kept.ravel(), bitorder="little"), "values": values}, True)
    if inputs > 2**16 or counts.max(initial=0) >= 2**16:
        return None
    tables = {"counts": counts.astype(np.uint16)}
    if form == "columns16":
        return Stored(form, tables | {"columns": kept.nonzero()[1].astype(np.uint16), "values": values}, False)
    steps = []
    for row in kept:
        for gap in np.diff(np.flatnonzero(row), prepend=0):
            whole, rest = divmod(int(gap), 255)
            steps += [255] * whole + [rest]
    return Stored(form, tables | {"steps": np.array(steps, np.uint8), "values": values}, False)


def smallest(kernel: np.ndarray, mask: np.ndarray) -> Stored:
    """A kernel in the form of the fewest bytes; the faster one of equals, in the order of `FORMS`."""
    found = [one for form in FORMS if (one := stored(kernel, mask, form)) is not None]
    return min(found, key=lambda one: one.num_bytes)


def files(cleaned: Cleaned) -> Mapping[str, bytes]:
    """The files `network.h`, `network.c` and `test.c`, which has a `main` of its own."""
    if cleaned.activation not in ACTIVATIONS:
        raise InputError(f"activation {cleaned.activation!r} is not known in C; {', '.join(ACTIVATIONS)} are")
    layers = [smallest(kernel, mask) for kernel, mask in zip(cleaned.kernels, cleaned.masks, strict=True)]
    inputs, outputs = cleaned.kernels[0].shape[0], cleaned.kernels[-1].shape[1]
    made = {"network.h": _header(inputs, outputs), "network.c": _source(cleaned, layers)}
    made["test.c"] = _test(cleaned, inputs)
    return {name: text.encode() for name, text in made.items()}


def _header(inputs: int, outputs: int) -> str:
    return f"""/* A pruned network, made by sa_jax. */
#ifndef NETWORK_H
#define NETWORK_H

#define NETWORK_INPUTS {inputs}
#define NETWORK_OUTPUTS {outputs}

/* Inputs standardised as in training, NETWORK_INPUTS of them, to NETWORK_OUTPUTS logits. */
void network_predict(const float *input, float *logits);

#endif
"""


def _source(cleaned: Cleaned, layers: list[Stored]) -> str:
    widths = [kernel.shape[1] for kernel in cleaned.kernels]
    used = [form for form in FORMS if any(layer.form == form for layer in layers)]
    tables, calls, at = [], [], "input"
    for number, (kernel, bias, layer) in enumerate(zip(cleaned.kernels, cleaned.biases, layers, strict=True)):
        to = "logits" if number == len(layers) - 1 else f"units{number % 2}"
        arrays = {f"{name}{number}": array for name, array in layer.tables.items()}
        tables += [_table(name, array) for name, array in (arrays | {f"bias{number}": bias}).items()]
        sizes = f"{kernel.shape[0]}, {kernel.shape[1]}" if layer.sizes else str(kernel.shape[1])
        calls.append(f"    for (int o = 0; o < {kernel.shape[1]}; o++) {to}[o] = bias{number}[o];")
        calls.append(f"    {layer.form}({at}, {to}, {sizes}, {', '.join(arrays)});")
        if to != "logits":
            calls.append(f"    activate({to}, {kernel.shape[1]});")
        at = to
    buffers = [f"    float units{i}[{max(1, *widths[i:-1:2])}];" for i in (0, 1) if widths[i:-1:2]]
    activate = f"""static void activate(float *units, int count) {{
    for (int i = 0; i < count; i++) {{
        float x = units[i];
        units[i] = {ACTIVATIONS[cleaned.activation]};
    }}
}}
"""
    parts = [
        '/* A pruned network, made by sa_jax. */\n#include "network.h"\n\n#include <math.h>\n#include <stdint.h>\n'
    ]
    parts += tables + [FUNCTIONS[form] for form in used] + ([activate] if len(layers) > 1 else [])
    body = "\n".join(buffers + calls)
    parts.append(f"void network_predict(const float *input, float *logits) {{\n{body}\n}}\n")
    return "\n".join(parts)


def _table(name: str, array: np.ndarray) -> str:
    kinds = {"float32": "float", "uint8": "uint8_t", "uint16": "uint16_t"}
    written = [_literal(value) for value in array.tolist()] or ["0"]
    lines = [", ".join(written[i : i + 12]) for i in range(0, len(written), 12)]
    body = ",\n    ".join(lines)
    return f"static const {kinds[str(array.dtype)]} {name}[{len(written)}] = {{\n    {body}}};\n"


def _literal(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    digits = f"{value:.9g}"  # which tell every float32 from its neighbours
    return digits + ("f" if "." in digits or "e" in digits else ".0f")


def _test(cleaned: Cleaned, inputs: int) -> str:
    x = np.random.default_rng(0).normal(size=(GOLDEN, inputs)).astype(np.float32)
    logits = predict(cleaned, x)
    return f"""/* The self-test of a pruned network, made by sa_jax: fails where its logits are too far off. */
#include "network.h"

#include <math.h>
#include <stdio.h>

{_table("inputs", x.ravel())}
{_table("expected", logits.ravel())}
int main(void) {{
    float worst = 0.0f;
    for (int sample = 0; sample < {GOLDEN}; sample++) {{
        const float *wanted = expected + sample * NETWORK_OUTPUTS;
        float logits[NETWORK_OUTPUTS], largest = 1e-30f, off = 0.0f;
        network_predict(inputs + sample * NETWORK_INPUTS, logits);
        for (int o = 0; o < NETWORK_OUTPUTS; o++) {{
            if (!isfinite(logits[o])) return 1;
            largest = fmaxf(largest, fabsf(wanted[o]));
            off = fmaxf(off, fabsf(logits[o] - wanted[o]));
        }}
        worst = fmaxf(worst, off / largest);
    }}
    printf("{GOLDEN} samples, logits off by at most %.2g of the largest\\n", (double)worst);
    return worst <= {TOLERANCE:g}f ? 0 : 1;
}}
"""
