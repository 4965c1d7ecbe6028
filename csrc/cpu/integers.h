// How many pieces cover a size, and the size of these together; for a >= 0 and a unit > 0.
#pragma once

#include <cstdint>

constexpr int64_t ceil_div(int64_t a, int64_t unit) { return (a + unit - 1) / unit; }
constexpr int64_t round_up(int64_t a, int64_t unit) { return ceil_div(a, unit) * unit; }
