# shellcheck shell=bash
# Test results: one file per test below build/results/, first line its status. Every
# test is planned, as failed, before it runs: whatever ends early shows as a failure.
# Sourced by scripts that test. Change it for how results are kept and shown.

RESULTS=${RESULTS:-$BUILD/results}
export RESULTS

# only_one <name>: two at once would take each other's results away.
only_one() {
	local lock
	exec {lock}>"$BUILD/$1.lock"
	flock -n "$lock" || die "another one is going on in $BUILD ($1.lock): wait until it ends"
}

# One flat folder: a name can be another one's beginning.
result_file() { echo "$RESULTS/$(printf '%s' "$1" | tr / % | tr -c 'A-Za-z0-9_.+% =-' _)"; }

# plan <name...>: these must report.
plan() {
	local name file
	for name; do
		file=$(result_file "$name")
		mkdir -p "$(dirname "$file")"
		printf 'failed\t%s\tit never reported a result\n' "$name" >"$file"
	done
}

# result <name> <passed|failed|skipped> [why]
result() {
	local file
	file=$(result_file "$1")
	mkdir -p "$(dirname "$file")"
	printf '%s\t%s\t%s\n' "$2" "$1" "${3:-}" >"$file"
	case $2 in
	passed) [ "${QUIET:-0}" = 1 ] || say "passed   $1" ;;
	*) say "$(printf '%-8s' "$2") $1${3:+: $3}" ;;
	esac
}

# Prints what did not pass and, last, the count. Fails if anything failed, or if
# there is no result at all.
summary() {
	local all
	all=$(find "$RESULTS" -type f -exec cat {} + 2>/dev/null | sort)
	grep -P '^skipped\t' <<<"$all" | awk -F '\t' '{ print "skipped " $2 ": " $3 }' || true
	grep -P '^failed\t' <<<"$all" | awk -F '\t' '{ print "FAILED  " $2 ": " $3 }' || true
	awk -F '\t' '
		{ n[$1]++ }
		END { printf "%d passed, %d failed, %d skipped\n", n["passed"], n["failed"], n["skipped"]
		      exit n["failed"] > 0 || n["passed"] == 0 }' <<<"$all"
}
