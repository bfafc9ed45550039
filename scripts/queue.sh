# shellcheck shell=bash
# The queue in its two forms: patches/ with its series file, and commits from the tag
# `base` on in the tree. Sourced by tree, series, status and check.
# Change it for the format of patches and of patches/series.

NAME='Hugetlb HGM project'
EMAIL=hgm@example.invalid

tgit() { git -C "$TREE" "$@"; }

# "<patch file><tab><stage it opens, if it does>" for every patch of the series.
read_series() {
	local line stage=
	[ -f "$PATCHES/series" ] || return 0
	while read -r line; do
		case $line in
		'# Stage '*) stage=${line#*: } ;;
		'#'* | '') ;;
		*)	printf '%s\t%s\n' "$line" "$stage"
			stage= ;;
		esac
	done <"$PATCHES/series"
}

# What expand_queue() depends on.
queue_key() {
	local patch
	{
		tgit rev-parse 'base^{commit}'
		cat "$TOP/scripts/queue.sh" "$PATCHES/series"
		while IFS=$'\t' read -r patch _; do sha256sum "$PATCHES/$patch"; done < <(read_series)
	} 2>&1 | sha256sum | cut -d ' ' -f 1
}

# Makes one commit per patch on top of the tag `base` without touching any file of
# the tree, and prints the last one. No fuzz; an offset is reported. The same
# patches on the same base give the same commit: what came of them last is remembered.
expand_queue() {
	local work parent date n=0 stage patch key
	key=$(queue_key)
	parent=$(sed -n "s/^$key //p" "$BUILD/expanded" 2>/dev/null || true)
	if [ -n "$parent" ] && tgit cat-file -e "$parent"; then
		echo "$parent"
		return
	fi
	work=$(mktemp -d "$BUILD/expand.XXXX")
	export GIT_INDEX_FILE=$work/index
	parent=$(tgit rev-parse 'base^{commit}')
	tgit read-tree "$parent"
	date=$(tgit log -1 --format=%ct "$parent")
	while IFS=$'\t' read -r patch stage; do
		n=$((n + 1))
		[ -f "$PATCHES/$patch" ] || { rm -rf "$work"; die "patches/series names $patch, which does not exist"; }
		git mailinfo -k --encoding=UTF-8 "$work/body" "$work/diff" <"$PATCHES/$patch" >"$work/info"
		if ! tgit apply --cached --verbose --whitespace=nowarn "$work/diff" 2>"$work/log"; then
			grep -vE '^(Checking|Applied) patch' "$work/log" >&2
			rm -rf "$work"
			die "patch $n, $patch, does not apply to $(tgit log -1 --format=%s base). Nothing was changed." \
				'Fix the patch, or (if an earlier one changed) make it anew from the tree with make series'
		fi
		sed -n "s/^Hunk.*offset.*/note: $patch: &/p" "$work/log" | tee -a "$work/notes" >&2
		{
			sed -n 's/^Subject: //p' "$work/info"
			echo
			cat "$work/body"
			[ -z "$stage" ] || printf '\nStage: %s\n' "$stage"
		} >"$work/message"
		# Seconds since the base's date: stable, and in order.
		parent=$(GIT_AUTHOR_NAME=$(sed -n 's/^Author: //p' "$work/info") \
			GIT_AUTHOR_EMAIL=$(sed -n 's/^Email: //p' "$work/info") \
			GIT_COMMITTER_NAME=$NAME GIT_COMMITTER_EMAIL=$EMAIL \
			GIT_AUTHOR_DATE="@$((date + n)) +0000" GIT_COMMITTER_DATE="@$((date + n)) +0000" \
			tgit commit-tree -p "$parent" -F <(git stripspace <"$work/message") \
			"$(tgit write-tree)")
	done < <(read_series)
	unset GIT_INDEX_FILE
	# What there is to say of an offset is to be said again.
	[ -s "$work/notes" ] || echo "$key $parent" >"$BUILD/expanded"
	rm -rf "$work"
	echo "$parent"
}

stage_of() { tgit log -1 --format=%B "$1" | sed -n 's/^Stage: *//p' | head -n 1; }

# The message without its stage line.
message_of() { tgit log -1 --format=%B "$1" | sed '/^Stage: /d' | git stripspace; }

# What makes a chain of commits the same queue as another, whatever its dates.
describe_commits() {
	local c
	for c in $(tgit rev-list --reverse "base..$1"); do
		tgit log -1 --format='%T %an <%ae>' "$c"
		echo "stage: $(stage_of "$c")"
		message_of "$c"
	done
}

# Asks for all messages at once first: commit by commit it takes seconds.
same_queue() {
	local format='%T %an <%ae>%n%B'
	[ "$(tgit log --format="$format" "base..$1")" = "$(tgit log --format="$format" "base..$2")" ] ||
		[ "$(describe_commits "$1")" = "$(describe_commits "$2")" ]
}

slug() {
	tgit log -1 --format=%f "$1" | cut -c -100 | tr '[:upper:]' '[:lower:]'
}

# One commit as a patch file.
export_commit() {
	tgit log -1 --format='From: %an <%ae>' "$1"
	message_of "$1" | sed '1s/^/Subject: /'
	echo ---
	tgit diff-tree -p --stat=80 --summary --no-color --no-ext-diff --no-textconv -M --abbrev=12 \
		-U3 --diff-algorithm=myers --src-prefix=a/ --dst-prefix=b/ --no-commit-id "$1"
}

# Writes the commits base..$1 to the folder $2: patches and a series file.
export_queue() {
	local c name stage n=0
	{
		echo '# The queue: make tree applies it in this order, make series writes it.'
		echo '# A stage opens with the commit whose message has a line "Stage: what it does".'
		for c in $(tgit rev-list --reverse "base..$1"); do
			name=$(slug "$c").patch
			[ ! -e "$2/$name" ] || die "two patches would be named $name: change a subject"
			stage=$(stage_of "$c")
			if [ -n "$stage" ]; then
				n=$((n + 1))
				printf '\n# Stage %d: %s\n' "$n" "$stage"
			fi
			echo "$name"
			export_commit "$c" >"$2/$name"
		done
	} >"$2/series"
}

# Is there something in the tree that a commit does not have?
uncommitted() { tgit status --porcelain --untracked-files=normal | head -n 10; }

# Remember that the tree and patches/ agree: to know later which of them moved.
remember_agreement() {
	tgit update-ref refs/hgm/tree "$1"
	tgit update-ref refs/hgm/queue "$2"
}

# Who moved since they agreed last: prints agree, tree, patches or both.
compare() {
	local head=$1 queue=$2 h q
	if same_queue "$head" "$queue"; then
		echo agree
		return
	fi
	h=$(tgit rev-parse -q --verify refs/hgm/tree || tgit rev-parse 'base^{commit}')
	q=$(tgit rev-parse -q --verify refs/hgm/queue || tgit rev-parse 'base^{commit}')
	if [ "$head" = "$h" ]; then
		echo patches
	elif [ "$queue" = "$q" ]; then
		echo tree
	else
		echo both
	fi
}

need_tree() {
	[ -e "$TREE/.git" ] || die 'there is no tree yet: make tree'
	tgit rev-parse -q --verify 'base^{commit}' >/dev/null ||
		die "$TREE has no tag named base: move it away and run make tree"
}

# The tree's branch, refusing states in which nobody can tell what is meant.
tree_head() {
	[ "$(tgit symbolic-ref -q HEAD || true)" = refs/heads/hgm ] ||
		die "$TREE is not on the branch hgm (a rebase not finished?): finish it, or git -C $TREE checkout hgm"
	[ -z "$(tgit rev-list --merges base..HEAD)" ] || die "$TREE has merge commits: a queue is a straight line"
	tgit merge-base --is-ancestor base HEAD || die "the branch hgm in $TREE does not start at the tag base"
	tgit rev-parse HEAD
}
