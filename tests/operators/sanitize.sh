#!/usr/bin/env bash
# Runs the tests of the native operators under AddressSanitizer and UndefinedBehaviorSanitizer.
#
#   tests/operators/sanitize.sh PYTHON [pytest options]
#
# The instrumented library is built into build/asan, beside the normal one. Python itself is not
# instrumented, so the sanitizer's runtime must be loaded into the process first. Before the tests, two planted
# bugs check that the sanitizers work.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$1
shift

cxx=${CXX:-c++}
preload=""
for library in libasan.so libubsan.so libstdc++.so; do # libstdc++: asan looks for `throw` when it starts
  path=$($cxx -print-file-name=$library)
  if [ ! -e "$path" ] || [ "$path" = "$library" ]; then
    echo "$cxx has no $library: the sanitizer run needs gcc and its sanitizers (CXX=g++)" >&2
    exit 1
  fi
  preload+="$path "
done

LLR_CUDA=0 LLR_SANITIZE=1 "$python" setup.py --quiet build --build-base build/asan
flags="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
$cxx -shared -fPIC -g $flags tests/operators/sanitizer_probe.cpp -o build/asan/probe.so

# No check for leaks: at exit, the interpreter leaves much memory allocated that is not ours.
export ASAN_OPTIONS="detect_leaks=0:${ASAN_OPTIONS:-}"
export UBSAN_OPTIONS="print_stacktrace=1:${UBSAN_OPTIONS:-}"
PYTHONPATH=$(echo "$PWD"/build/asan/lib.*)
export PYTHONPATH
sanitized() { LD_PRELOAD=$preload "$python" "$@"; }

planted() { # planted FUNCTION REPORT: this call must end the process with that report
  local output
  if output=$(sanitized -c "import ctypes; ctypes.CDLL('build/asan/probe.so').$1(3)" 2>&1); then
    echo "the planted bug $1 was not detected" >&2
    exit 1
  fi
  grep -q "$2" <<<"$output" || { printf '%s\nno report of %s\n' "$output" "$2" >&2; exit 1; }
}
planted read_past_end heap-buffer-overflow
planted overflow_int "signed integer overflow"

# Output is captured at the level of Python only: a sanitizer writes its report to the file descriptor and ends
# the process, and text that pytest captured there would be lost.
sanitized -c "
import sys
sys.path.remove('')  # this folder, where the normal library lies
import pytest
code = pytest.main(sys.argv[1:])
import llr._C
print('tested:', llr._C.__file__)
sys.exit(code or '/asan/' not in llr._C.__file__)" \
  tests/operators -m "not slow and not emulated" -p no:cacheprovider --capture=sys "$@"
