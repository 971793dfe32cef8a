// How much memory there is, so that sizes which cannot be meant are refused before anything is begun.
#pragma once

#include <string>

namespace llr {

// Whether so many bytes can lie in this machine's memory at all. Doubles: sizes multiplied in them never wrap round.
bool fits_memory(double bytes);

// "takes 24.0 GiB, more than the memory of this machine (15.5 GiB)"
std::string beyond_memory(double bytes);

}  // namespace llr
