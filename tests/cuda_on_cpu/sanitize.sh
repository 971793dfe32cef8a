#!/usr/bin/env bash
# Runs the tests of the emulated kernels under AddressSanitizer and UndefinedBehaviorSanitizer (asan), or
# under ThreadSanitizer (tsan). test_planted.py shows that these catch what they should.
#
#   tests/cuda_on_cpu/sanitize.sh asan|tsan PYTHON [pytest options]
#
# As in tests/operators/sanitize.sh, Python itself is not instrumented, so the sanitizer's runtime has to be in the
# process before anything else; and a report would be lost in a file that pytest captures.
#
# A frame without a line: addr2line -Cfie LIBRARY OFFSET knows it.
set -euo pipefail
cd "$(dirname "$0")/../.."
variant=$1
python=$2
shift 2

# In reverse: Gram matrices have the largest blocks, after which ThreadSanitizer has more to do at barriers.
mapfile -t tests < <(ls -r tests/cuda_on_cpu/test_*.py | grep -v -e planted -e mutants)
few=()
# Half a million threads: minutes there, and nothing that fewer do not show.
[ "$variant" != tsan ] || few=(-k "not larger_than_the_scratch")

export LLR_EMULATION=$variant
export OMP_NUM_THREADS=1 # torch's threads wait for each other in ways that sanitizers do not see
"$python" tests/cuda_on_cpu/build.py "$variant" "$python" -c "
import sys
import pytest
code = pytest.main(sys.argv[1:])
with open('/proc/self/maps') as maps:
    tested = {line.split()[-1] for line in maps if 'llr_emulated' in line}
print('tested:', *tested)
sys.exit(code or not all('/$variant-' in path for path in tested) or not tested)" \
  "${tests[@]}" "${few[@]}" -m "not slow" -p no:cacheprovider --capture=sys "$@"
