# The front door: every verb is a script of the same name in scripts/, and its
# options are variables the script reads. `make help` lists them.
# Change it only to add a verb.

# SHELL=1 is an option of `make vm`, and also what make runs recipes with.
VM_SHELL := $(if $(findstring command,$(origin SHELL)),$(SHELL))
override SHELL := /bin/bash
export VM_SHELL

# Take the command as it was typed, dollar signs and all.
override CMD := $(value CMD)
export CMD

VERBS := packages fetch tree series status check cross size build vm test smoke soak demo bench clean
.PHONY: help $(VERBS)

help:
	@sed -n 's/^#| \{0,1\}//p' Makefile

$(VERBS):
	@scripts/$@

#| make demo       everything, up to four stories on 1 GiB pages on the stock and the patched kernel:
#|                 post-copy, a database, a program that repairs itself, a virtual machine; tables, a plot
#| make test       everything, up to selftests under the debug kernel; the last line counts
#| make smoke      the HGM selftests on the fast kernel
#|                 ARCH=arm64 is an option of test, smoke, vm and build: it is emulated
#| make soak       random operations against a model, and races, for MINUTES=60 each
#| make bench      the measurements
#|
#| make vm CMD='...'   run a command in a virtual machine, as root, over a read-only view
#|                 of this file system; its exit status is make's. Options: BASE=1
#|                 KCONFIG=fast|debug HUGE='hugepagesz=1G hugepages=2' APPEND= MEM=6G
#|                 SMP=2 ICOUNT=1 TIMEOUT=600 ACCEL=tcg|kvm OUT=dir SHELL=1
#| make build      build a kernel: BASE=1 for stock, KCONFIG=fast|debug
#|
#| make tree       build/linux: a git tree, the base and one commit per patch
#| make series     write that tree's commits back to patches/
#| make status     base version, patches per stage, do tree and patches/ agree
#| make check      the queue applies and is clean; BISECT=1: so is every prefix
#|
#| make cross      compile what the queue touches for other architectures; STAGES=1: at each
#|                 stage's end
#| make size       lines per stage, special cases outside hugetlb's files, text with the option off
#|
#| make packages   install the Debian packages the rest needs
#| make fetch      fetch the kernel's source; LINUX=<tarball or tree> to use your own
#| make clean      delete build/ (keeps a tree that has work in it, and the cache)
