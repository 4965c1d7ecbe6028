// The rate that encoding could reach at most on this machine.
#pragma once
#include <cstddef>
#include <string_view>

#include "presplit.h"

namespace text {

// Does for each piece of the text what every encoder must; returns how many ids were written.
size_t encode_nothing(const Pattern& pattern, std::string_view text);

}  // namespace text
