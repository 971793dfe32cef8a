#!/usr/bin/env bash
# Runs the tests of the emulated kernels under AddressSanitizer and UndefinedBehaviorSanitizer (asan), or
# under ThreadSanitizer (tsan). test_planted.py checks that these detect planted bugs.
#
#   tests/cuda_on_cpu/sanitize.sh asan|tsan PYTHON [pytest options]
#
# As in tests/operators/sanitize.sh, Python itself is not instrumented, so the sanitizer's runtime must be loaded
# into the process first; and a report would be lost if pytest captured the file descriptor.
#
# For a frame without a line number: addr2line -Cfie LIBRARY OFFSET finds it.
set -euo pipefail
cd "$(dirname "$0")/../.."
variant=$1
python=$2
shift 2

# In reverse order: Gram matrices have the largest blocks, after which ThreadSanitizer is slower at barriers.
mapfile -t tests < <(ls -r tests/cuda_on_cpu/test_*.py | grep -v -e planted -e mutants)
few=()
# A test with half a million threads would take minutes under tsan, and show no more than smaller ones.
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
