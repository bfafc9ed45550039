# shellcheck shell=bash disable=SC2034
# apt with a configuration of its own: newer Debian suites, signatures checked, and
# nothing of the user's touched. Sourced by what downloads from Debian.
# Change it for suites and mirror.

MIRROR=${MIRROR:-http://deb.debian.org/debian}
SUITES=${SUITES:-trixie-backports forky sid}
NETWORK_HELP='check the network (and the proxy settings)'

# private_apt <folder> <log> [deb-src]: makes apt use that folder, and fetches the lists;
# those of another architecture with APT_ARCH.
private_apt() {
	local apt=$1 log=$2 s
	rm -rf "$apt"
	mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/get"
	: >"$apt/status"
	for s in $SUITES; do
		echo "${3:-deb} [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $MIRROR $s main"
	done >"$apt/sources.list"
	cat >"$apt/apt.conf" <<-END
		Dir::Etc::sourcelist "$apt/sources.list";
		Dir::Etc::sourceparts "/dev/null";
		Dir::Etc::preferencesparts "/dev/null";
		Dir::Etc::preferences "/dev/null";
		Dir::State::lists "$apt/lists";
		Dir::State::status "$apt/status";
		Dir::Cache "$apt/cache";
		APT::Sandbox::User "$(id -un)";
		APT::Default-Release "";
		${APT_ARCH:+APT::Architecture "$APT_ARCH"; APT::Architectures "$APT_ARCH";}
		Acquire::Languages "none";
		Acquire::Retries "${RETRIES:-3}";
		quiet "1";
	END
	export APT_CONFIG=$apt/apt.conf
	run_logged "fetch Debian's package lists ($SUITES)" "$log" apt-get --error-on=any update
}
