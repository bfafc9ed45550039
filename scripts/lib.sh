# shellcheck shell=bash disable=SC2034
# What every host-side script shares: where things are, how to speak, how to run
# a long command with progress. Sourced, never run.
# Change it for settings that more than one script must agree on.

set -euo pipefail
export LC_ALL=C

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
BUILD=${BUILD:-$TOP/build}
PATCHES=${PATCHES:-$TOP/patches}
CACHE=${CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/hugetlb-hgm}
TREE=$BUILD/linux		# the patched tree: edit and commit there
STOCK=$BUILD/stock		# the same repository at the tag `base`
LOGS=$BUILD/logs
ARCH=${ARCH:-x86_64}
JOBS=${JOBS:-$(nproc)}
VERSION=7.2			# the only kernel series the queue is for

# make hands its command-line variables to every make below it; the kernel's
# makefiles must not see ours.
unset MAKEFLAGS MAKELEVEL MFLAGS MAKEOVERRIDES

mkdir -p "$BUILD" "$LOGS"

# Ctrl-C does not reach what runs in the background.
end_children() {
	local child
	for child in $(pgrep -P "$1"); do
		end_children "$child"
		kill "$child" 2>/dev/null || true
	done
}
trap 'end_children $$; trap - INT; kill -INT $$' INT

START=${START:-$(date +%s)}	# of the whole verb, inherited by the scripts it calls
export START BUILD PATCHES CACHE ARCH

elapsed() {
	local s=$(($(date +%s) - START))
	printf '%d:%02d' $((s / 60)) $((s % 60))
}

# Progress goes to stderr, so that a script's stdout stays its result.
say() { printf '[%s] %s\n' "$(elapsed)" "$*" >&2; }

die() {
	printf 'error: %s\n' "$*" >&2
	exit 1
}

# run_logged <stage> <log file> <command...>: output goes to the log; a line
# every 20 seconds tells where it is; a failure shows the log's errors and end.
run_logged() {
	local stage=$1 log=$2 pid rc=0 n=0
	shift 2
	mkdir -p "$(dirname "$log")"
	say "$stage (log: $log)"
	"$@" >"$log" 2>&1 &
	pid=$!
	while kill -0 "$pid" 2>/dev/null; do
		sleep 0.2
		n=$((n + 1))
		if [ $((n % 100)) = 0 ]; then
			say "$stage: $(wc -l <"$log") lines, $(tail -n 1 "$log" | cut -c -70)"
		fi
	done
	wait "$pid" || rc=$?
	if [ "$rc" != 0 ]; then
		{
			echo "--- $stage failed with status $rc; errors in $log:"
			grep -nE '(error|Error|undefined reference|No space left)[: ]' "$log" | head -n 20
			echo "--- its end:"
			tail -n 15 "$log"
			if grep -q 'No space left on device' "$log"; then
				echo "--- the disk is full: free some space, $BUILD and $CACHE may be deleted"
			fi
		} >&2
	fi
	return "$rc"
}

# Which kernel a verb means: BASE=1 for stock, KCONFIG for the configuration.
select_kernel() {
	KCONFIG=${KCONFIG:-fast}
	[ -f "$TOP/config/$KCONFIG" ] || die "KCONFIG=$KCONFIG: choose fast or debug"
	if [ "${BASE:-0}" = 1 ]; then
		FLAVOUR=stock SRC=$STOCK
	else
		FLAVOUR=hgm SRC=$TREE
	fi
	OBJ=$BUILD/obj/$FLAVOUR-$KCONFIG-$ARCH
	# scripts/check compiles other trees, elsewhere.
	SRC=${SRC_DIR:-$SRC} OBJ=${OBJ_DIR:-$OBJ}
	case $ARCH in
	x86_64) IMAGE=$OBJ/arch/x86/boot/bzImage QEMU=qemu-system-x86_64 CROSS='' ;;
	arm64) IMAGE=$OBJ/arch/arm64/boot/Image QEMU=qemu-system-aarch64 CROSS=aarch64-linux-gnu- ;;
	*) die "ARCH=$ARCH: choose x86_64 or arm64" ;;
	esac
	KERNEL=$FLAVOUR-$KCONFIG	# names its results
	[ "$ARCH" = x86_64 ] || KERNEL+=-$ARCH
	[ "$ARCH" != "$(uname -m | sed s/aarch64/arm64/)" ] || CROSS=
}

kernel_make() {
	make -C "$SRC" O="$OBJ" ARCH="$ARCH" CROSS_COMPILE="$CROSS" LOCALVERSION="-$FLAVOUR-$KCONFIG" "$@"
}

# One compiler cache for every checkout and flavour, with nothing in a build that
# differs from one run to the next.
use_ccache() {
	export KBUILD_BUILD_TIMESTAMP='2026-01-01 00:00:00 UTC'
	export KBUILD_BUILD_USER=hgm KBUILD_BUILD_HOST=hgm KBUILD_BUILD_VERSION=1
	local cc=${COMPILE_WITH:-${CROSS}gcc}
	COMPILER=(CC="$cc" HOSTCC=gcc)
	if command -v ccache >/dev/null; then
		export CCACHE_DIR=${CCACHE_DIR:-$CACHE/ccache}
		export CCACHE_BASEDIR=$BUILD CCACHE_NOHASHDIR=1
		export CCACHE_MAXSIZE=${CCACHE_MAXSIZE:-8G}
		COMPILER=(CC="ccache $cc" HOSTCC='ccache gcc')
	fi
}
