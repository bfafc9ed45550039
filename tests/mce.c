// SPDX-License-Identifier: GPL-2.0
/*
 * Machine checks in base pages of a hugetlb page that is mapped with MADV_SPLIT:
 *
 *	mce <sizes of huge pages: 2M, 1G>
 *
 * In a guest, as root, with an Intel processor (arch/x86/kernel/cpu/mce/severity.c has the
 * rules; an AMD processor must have SUCCOR for errors that require action). Errors come by
 *
 *	mce-inject	its files in debugfs: "sw" decodes an error only, "hw" writes the
 *			processor's registers and raises the exception, in the kernel, so
 *			that action is optional: in the kernel, one that requires it panics
 *	monitor		the emulator: a line "# monitor <address> <command>" asks for it,
 *			once processor 0 reads the address if that is not 0
 *
 * The values are those QEMU gives a guest when the host says that its memory is bad. Each
 * error must cost 4 KiB, and its signal say which. Results are KTAP.
 *
 * Change it for what a machine check must do to a huge page, and what it must not.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#ifndef MADV_SPLIT
#define MADV_SPLIT 26
#endif

#define PAGE	4096UL
#define WORDS	(PAGE / 8)
#define BANK	9
#define TESTS	5			/* for each size */

/* valid, uncorrected, enabled, MISC and ADDR valid, signaled; then what it is */
#define SIGNALED	0xbd00000000000000UL
#define OPTIONAL	(SIGNALED | 0xc0)		/* found by the memory's scrubber */
#define REQUIRED	(SIGNALED | 1UL << 55 | 0x134)	/* a load */
#define MISC		(2 << 6 | 12)			/* physical address, of a page */

/* in progress, restart possible; also: the instruction is the one that met the error */
#define MCG_OPTIONAL	5
#define MCG_REQUIRED	7

#define DEBUG	"/sys/kernel/debug/"
#define CHECKS	"/sys/devices/system/machinecheck/machinecheck0/"

static size_t pages;
static int fd;
static uint64_t *mem;
static bool *lost;
static long corrupted;			/* HardwareCorrupted, in kB, as it must be now */
static const char *size;
static int test;
static sigjmp_buf after;
static siginfo_t info;
static volatile sig_atomic_t got;

static void die(const char *what)
{
	printf("Bail out! %s: %s\n", what, strerror(errno));
	exit(1);
}

static void put(const char *file, const char *fmt, ...)
{
	char text[64];
	va_list ap;
	int f, len;

	va_start(ap, fmt);
	len = vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	f = open(file, O_WRONLY);
	if (f < 0 || write(f, text, len) != len)
		die(file);
	close(f);
}

static long meminfo(void)
{
	FILE *f = fopen("/proc/meminfo", "r");
	char line[128];
	long kb = -1;

	while (f && fgets(line, sizeof(line), f))
		sscanf(line, "HardwareCorrupted: %ld", &kb);
	if (kb < 0)
		die("HardwareCorrupted");
	fclose(f);
	return kb;
}

static uint64_t physical(size_t page)
{
	int f = open("/proc/self/pagemap", O_RDONLY);
	uint64_t e;

	if (f < 0 || pread(f, &e, 8, ((uintptr_t)mem / PAGE + page) * 8) != 8)
		die("pagemap");
	close(f);
	return (e & ((1UL << 55) - 1)) * PAGE;
}

static void run_on(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		die("sched_setaffinity");
}

static void bus_error(int sig, siginfo_t *si, void *context)
{
	(void)sig, (void)context;
	info = *si;
	got++;
	siglongjmp(after, 1);
}

/* Both ends of a page say which one it is. */
static bool intact(size_t page)
{
	volatile uint64_t *p = mem + page * WORDS;

	return p[0] == page && p[WORDS - 1] == ~page;
}

static bool complain(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	printf("# ");
	vprintf(fmt, ap);
	printf("\n");
	va_end(ap);
	return false;
}

/* The signal that came is of this page and this kind. */
static bool right(size_t page, int code)
{
	long off = (char *)info.si_addr - (char *)(mem + page * WORDS);

	printf("# signal: code %d, page %ld, lsb %d\n", info.si_code,
	       ((char *)info.si_addr - (char *)mem) / (long)PAGE, info.si_addr_lsb);
	if (got != 1)
		return complain("%d signals", got);
	return (info.si_code == code && off >= 0 && off < (long)PAGE && info.si_addr_lsb == 12) ||
	       complain("instead of code %d, page %zu, lsb 12", code, page);
}

/* Every page that is lost says so, to a load and to read(2); every other one is there. */
static bool whole(void)
{
	volatile size_t page;
	char buf[PAGE];

	for (page = 0; page < pages; page++) {
		got = 0;
		if (!sigsetjmp(after, 1) && !intact(page))
			return complain("page %zu has other contents", page);
		if (got && !lost[page])
			return complain("page %zu is lost", page);
		if (!lost[page])
			continue;
		if (!got)
			return complain("page %zu can be read", page);
		if (!right(page, BUS_MCEERR_AR))
			return false;
		if (pread(fd, buf, PAGE, page * PAGE) != -1 || errno != EIO)
			return complain("read(2) of page %zu does not fail with EIO", page);
	}
	if (meminfo() != corrupted)
		return complain("HardwareCorrupted is %ld kB instead of %ld", meminfo(), corrupted);
	return true;
}

/* The ways an error comes: not before the page is read, if somebody must. */

static void debugfs(const char *flags, uint64_t status, uint64_t addr)
{
	put(DEBUG "mce-inject/flags", "%s\n", flags);	/* it cuts off the last byte */
	put(DEBUG "mce-inject/status", "%#lx", status);
	put(DEBUG "mce-inject/addr", "%#lx", addr);
	put(DEBUG "mce-inject/misc", "%#x", MISC);
	put(DEBUG "mce-inject/cpu", "0");
	put(DEBUG "mce-inject/bank", "%d", BANK);	/* now */
}

static void inject_sw(size_t page)
{
	debugfs("sw", OPTIONAL, physical(page));
	sleep(1);		/* a worker looks at it */
}

static void inject_hw(size_t page)
{
	/* Only this processor gets the exception: don't wait for others. */
	put(CHECKS "monarch_timeout", "0");
	debugfs("hw", OPTIONAL, physical(page));
}

static void monitor_optional(size_t page)
{
	printf("# monitor 0 mce -b 0 %d %#lx %d %#lx %#x\n", BANK, OPTIONAL,
	       MCG_OPTIONAL, physical(page), MISC);
}

static void monitor_required(size_t page)
{
	printf("# monitor %p mce -b 0 %d %#lx %d %#lx %#x\n", mem + page * WORDS, BANK, REQUIRED,
	       MCG_REQUIRED, physical(page), MISC);
}

static void report(bool ok, const char *name)
{
	alarm(0);
	printf("%sok %d %s/%s\n", ok ? "" : "not ", ++test, size, name);
}

/* An error that nobody has met yet: a process that asked for it is told. */
static void optional(const char *name, void (*inject)(size_t), size_t page)
{
	sigset_t bus;
	bool ok;

	/* It may come in the middle of anything, printf() for example. */
	sigemptyset(&bus);
	sigaddset(&bus, SIGBUS);
	sigprocmask(SIG_BLOCK, &bus, NULL);
	alarm(600);
	inject(page);
	got = sigwaitinfo(&bus, &info) == SIGBUS;
	sigprocmask(SIG_UNBLOCK, &bus, NULL);
	lost[page] = true;
	corrupted += 4;
	ok = right(page, BUS_MCEERR_AO) && whole();
	report(ok, name);
}

/* An error met by a load, again and again so that there is one when it comes. */
static void required(const char *name, void (*inject)(size_t), size_t page)
{
	bool ok;

	alarm(600);
	got = 0;
	if (!sigsetjmp(after, 1)) {
		inject(page);
		asm volatile("1: mov (%0), %%rcx; jmp 1b" : : "a"(mem + page * WORDS)
			     : "rcx", "memory");
	}
	lost[page] = true;
	corrupted += 4;
	ok = right(page, BUS_MCEERR_AR) && whole();
	report(ok, name);
}

static void all(const char *name, int shift)
{
	char pool[80], timeout[16] = "";
	FILE *f = fopen(CHECKS "monarch_timeout", "r");
	size_t page;

	if (!f || !fgets(timeout, sizeof(timeout), f))
		die(CHECKS "monarch_timeout");
	fclose(f);
	size = name;
	pages = (1UL << shift) / PAGE;
	lost = calloc(pages, sizeof(*lost));
	snprintf(pool, sizeof(pool), "/sys/kernel/mm/hugepages/hugepages-%lukB/nr_hugepages",
		 1UL << (shift - 10));
	put(pool, "1");
	fd = memfd_create("mce", MFD_HUGETLB | (unsigned int)shift << MFD_HUGE_SHIFT);
	if (fd < 0 || ftruncate(fd, pages * PAGE))
		die("memfd");
	mem = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (mem == MAP_FAILED)
		die("mmap");
	if (madvise(mem, pages * PAGE, MADV_SPLIT))
		die("MADV_SPLIT");
	for (page = 0; page < pages; page++) {
		mem[page * WORDS] = page;
		mem[(page + 1) * WORDS - 1] = ~page;
	}
	corrupted = meminfo();

	inject_sw(7);
	report(whole(), "sw_mce_inject_changes_nothing");
	optional("optional_mce_inject", inject_hw, pages / 2 + 5);
	put(CHECKS "monarch_timeout", timeout);
	optional("optional_monitor", monitor_optional, pages / 2 + 4);
	required("required_monitor", monitor_required, pages - 1);

	/* What is not lost goes back to the system. */
	munmap(mem, pages * PAGE);
	close(fd);
	put(pool, "0");
	report(meminfo() == corrupted, "freed");
	free(lost);
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_sigaction = bus_error, .sa_flags = SA_SIGINFO };
	int i;

	setvbuf(stdout, NULL, _IOLBF, 0);
	run_on(0);
	sigaction(SIGBUS, &action, NULL);
	if (prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0))
		die("PR_MCE_KILL");
	printf("TAP version 13\n1..%d\n", (argc - 1) * TESTS);
	for (i = 1; i < argc; i++)
		all(argv[i], strcmp(argv[i], "1G") ? 21 : 30);
	return 0;
}
