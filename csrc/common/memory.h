// How much memory the machine has, so that impossible sizes are refused before any work starts.
#pragma once

#include <string>

namespace llr {

// Whether this many bytes fit into this machine's memory. In doubles, because products of sizes do not
// overflow there.
bool fits_memory(double bytes);

// "takes 24.0 GiB, more than the memory of this machine (15.5 GiB)"
std::string beyond_memory(double bytes);

}  // namespace llr
