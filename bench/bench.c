// SPDX-License-Identifier: GPL-2.0
/*
 * What operations on hugetlb memory cost, in instructions: run it in a guest
 * whose clock counts them (make vm ICOUNT=1), where the time stamp counter is
 * the number of instructions executed. Prints "name <tab> unit <tab> value";
 * a value is the median of many samples, n/a where the kernel cannot do it.
 *
 *   bench [2M] [1G] [continue] [range] [others] [fill] [tables]
 *
 * Without arguments all parts run, each in a process of its own.
 * Change it to measure something else; bench/goals says what is compared.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <linux/mman.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_SPLIT
#define MADV_SPLIT 26
#endif

#define PAGE	4096UL
#define MIB	(1UL << 20)
#define GIB	(1UL << 30)
#define PMD	(2 * MIB)

/* of mm/gup_test.h, which is not exported */
#define GUP_FAST_BENCHMARK	_IOWR('g', 1, struct gup_test)
#define GUP_BASIC_TEST		_IOWR('g', 4, struct gup_test)
struct gup_test {
	uint64_t get_delta_usec, put_delta_usec, addr, size;
	uint32_t nr_pages_per_call, gup_flags, test_flags, which_pages[8];
};

static void die(const char *fmt, ...)
{
	int err = errno;
	va_list ap;

	va_start(ap, fmt);
	fprintf(stderr, "bench: ");
	vfprintf(stderr, fmt, ap);
	fprintf(stderr, ": %s\n", strerror(err));
	exit(1);
}

/* --- samples --- */

static uint64_t sample[65536], overhead;
static int samples;

static inline uint64_t now(void)
{
#ifdef __x86_64__
	return __builtin_ia32_rdtsc();
#else
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ULL + t.tv_nsec;
#endif
}

static void add(uint64_t start)
{
	sample[samples++] = now() - start;
	if (samples == sizeof(sample) / sizeof(*sample))
		errno = 0, die("too many samples");
}

#define MEASURE(what) do { uint64_t start_ = now(); what; add(start_); } while (0)

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(uint64_t *)a, y = *(uint64_t *)b;

	return (x > y) - (x < y);
}

static uint64_t median(void)
{
	uint64_t m;

	qsort(sample, samples, sizeof(*sample), by_value);
	m = sample[samples / 2];
	samples = 0;
	return m - overhead;
}

static void print(const char *unit, double value, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	printf(value < 0 ? "\t%s\tn/a\n" : value < 1000 ? "\t%s\t%.2f\n" : "\t%s\t%.0f\n", unit, value);
	fflush(stdout);
}

/* --- memory --- */

struct area {
	int fd, uffd;
	size_t size, step;	/* step: the huge page, or the page */
	char *mem;
};

static void map_area(struct area *a)
{
	a->mem = mmap(NULL, a->size, PROT_READ | PROT_WRITE, MAP_SHARED, a->fd, 0);
	if (a->mem == MAP_FAILED)
		die("mmap");
}

/* A file of huge pages that are there already (or of shmem, where none is), mapped. */
static struct area new_area(size_t step, size_t size)
{
	int huge = step == GIB ? MFD_HUGETLB | MFD_HUGE_1GB : step == PMD ? MFD_HUGETLB | MFD_HUGE_2MB : 0;
	struct area a = { .fd = memfd_create("bench", huge), .size = size, .step = step };

	if (a.fd < 0 || ftruncate(a.fd, size) || (huge && fallocate(a.fd, 0, 0, size)))
		die("%zu MiB of memory in pages of %zu KiB", size >> 20, step >> 10);
	map_area(&a);
	return a;
}

static void free_area(struct area *a)
{
	if (munmap(a->mem, a->size) || close(a->fd))
		die("munmap");
}

static void populate(struct area *a)
{
	for (size_t o = 0; o < a->size; o += a->step)
		*(volatile char *)(a->mem + o) = 1;
}

static void unpopulate(struct area *a)
{
	if (madvise(a->mem, a->size, MADV_DONTNEED))
		die("MADV_DONTNEED");
}

static void use_uffd(struct area *a, uint64_t mode, uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	struct uffdio_register reg = { .range = { (uintptr_t)a->mem, a->size }, .mode = mode };

	a->uffd = syscall(SYS_userfaultfd, O_CLOEXEC);
	if (a->uffd < 0 || ioctl(a->uffd, UFFDIO_API, &api) || ioctl(a->uffd, UFFDIO_REGISTER, &reg))
		die("userfaultfd");
}

static void cont(struct area *a, size_t offset, size_t len)
{
	struct uffdio_continue c = { .range = { (uintptr_t)a->mem + offset, len } };

	if (ioctl(a->uffd, UFFDIO_CONTINUE, &c))
		die("UFFDIO_CONTINUE of %#zx at %#zx", len, offset);
}

/*
 * Who runs when must not depend on what ran before: the highest priority first,
 * children last.
 */
static void set_priority(int priority)
{
	struct sched_param p = { priority };

	if (sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &p))
		die("sched_setscheduler");
}

/* Resolves minor faults with one step; keeps the descriptor that a fork sends. */
static size_t handler_step;
static int forked_uffd = -1;

static void *handler(void *arg)
{
	struct area *a = arg;
	struct uffd_msg m;

	set_priority(2);
	while (read(a->uffd, &m, sizeof(m)) == sizeof(m)) {
		if (m.event == UFFD_EVENT_FORK)
			forked_uffd = m.arg.fork.ufd;
		else
			cont(a, (m.arg.pagefault.address - (uintptr_t)a->mem) & ~(handler_step - 1), handler_step);
	}
	die("read of userfaultfd");
	return NULL;
}

static void start_handler(struct area *a, size_t step)
{
	pthread_t t;

	handler_step = step;
	if (pthread_create(&t, NULL, handler, a))
		die("thread");
	usleep(1000);		/* it waits now */
}

/* --- memory that never heard of HGM --- */

static void do_fork(int times)
{
	int status;
	pid_t pid;

	for (int i = 0; i < times; i++) {
		MEASURE(pid = fork());
		if (!pid)
			_exit(0);
		if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
			die("fork");
		if (forked_uffd >= 0)
			close(forked_uffd);
	}
}

static double gup(struct area *a, unsigned long cmd, int per_call)
{
	int fd = open("/sys/kernel/debug/gup_test", O_RDWR);
	size_t size = a->size < 64 * MIB ? a->size : 64 * MIB;

	if (fd < 0)
		die("/sys/kernel/debug/gup_test");
	populate(a);
	for (int i = 0; i < 11; i++) {
		struct gup_test g = { .addr = (uintptr_t)a->mem, .size = size, .nr_pages_per_call = per_call };

		if (ioctl(fd, cmd, &g) || g.size != size)
			die("gup_test");
		sample[samples++] = g.get_delta_usec * 1000;
	}
	close(fd);
	return (double)median() / (size / PAGE / per_call);
}

static void plain(const char *name, size_t step, int pages, const char *all)
{
	struct area a = new_area(step, pages * step), from = new_area(step, step), p = { .step = step };
	struct uffdio_writeprotect wp = { .mode = UFFDIO_WRITEPROTECT_MODE_WP };
	int rounds = 512 / pages;
	const char *insn = "instructions";
	char *hole;

#define EACH_PAGE(o) for (size_t o = 0; o < a.size; o += step)
	for (int write = 0; write < 2; write++) {
		for (int i = 0; i < rounds; i++) {
			unpopulate(&a);
			EACH_PAGE(o)
				if (write)
					MEASURE(*(volatile char *)(a.mem + o) = 1);
				else
					MEASURE(*(volatile char *)(a.mem + o));
		}
		print(insn, median(), "%s %s fault", name, write ? "write" : "read");
	}

	populate(&a);
	for (int i = 0; i < 101; i++) {
		MEASURE(mprotect(a.mem, a.size, PROT_READ));
		if (mprotect(a.mem, a.size, PROT_READ | PROT_WRITE))
			die("mprotect");
	}
	print(insn, median(), "%s mprotect, %s", name, all);

	print(insn, gup(&a, GUP_FAST_BENCHMARK, 1), "%s GUP-fast, one page", name);
	print(insn, gup(&a, GUP_BASIC_TEST, 1), "%s GUP, one page", name);
	print(insn, gup(&a, GUP_BASIC_TEST, 512), "%s GUP, 512 pages", name);

	populate(&a);
	do_fork(101);
	print(insn, median(), "%s fork, shared, %s", name, all);

	for (int i = 0; i < 101; i++) {
		populate(&a);
		MEASURE(munmap(a.mem, a.size));
		map_area(&a);
	}
	print(insn, median(), "%s munmap, %s", name, all);

	use_uffd(&a, UFFDIO_REGISTER_MODE_MINOR, UFFD_FEATURE_MINOR_HUGETLBFS);
	for (int i = 0; i < rounds; i++) {
		unpopulate(&a);
		EACH_PAGE(o)
			MEASURE(cont(&a, o, step));
	}
	print(insn, median(), "%s CONTINUE", name);
	unpopulate(&a);
	start_handler(&a, step);
	for (int i = 0; i < rounds; i++) {
		unpopulate(&a);
		EACH_PAGE(o)
			MEASURE(*(volatile char *)(a.mem + o));
	}
	print(insn, median(), "%s fault to wake-up by CONTINUE", name);

	/* A new mapping: the descriptor, and its thread, stay with the old one. */
	if (munmap(a.mem, a.size))
		die("munmap");
	map_area(&a);
	use_uffd(&a, UFFDIO_REGISTER_MODE_MISSING, 0);
	hole = mmap(NULL, step, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	populate(&from);
	for (int good = 0; good < 2; good++) {
		for (int i = 0; i < (good ? (step == GIB ? 1 : 21) : 101); i++) {
			struct uffdio_copy c = { .dst = (uintptr_t)a.mem, .len = step,
						 .src = (uintptr_t)(good ? from.mem : hole) };
			int r;

			if (fallocate(a.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, step))
				die("fallocate");
			MEASURE(r = ioctl(a.uffd, UFFDIO_COPY, &c));
			if (good ? r != 0 : errno != EFAULT)
				die("UFFDIO_COPY");
		}
		/* Copying is one instruction per byte: left in, it hides the rest (and in 1 GiB, anything). */
		print(insn, median() - (good && step == PMD ? step : 0), "%s COPY%s", name,
		      !good ? " of memory that is not there" : step == PMD ? " without its copying" : "");
	}
	free_area(&from);
	free_area(&a);

	a = new_area(step, pages * step);
	use_uffd(&a, UFFDIO_REGISTER_MODE_WP, UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_EVENT_FORK);
	populate(&a);
	wp.range = (struct uffdio_range){ (uintptr_t)a.mem, a.size };
	if (ioctl(a.uffd, UFFDIO_WRITEPROTECT, &wp))
		die("UFFDIO_WRITEPROTECT");
	start_handler(&a, step);
	do_fork(101);
	print(insn, median(), "%s fork, uffd-wp, %s", name, all);
	free_area(&a);

	p.size = pages * step;
	p.mem = mmap(NULL, p.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB |
		     (step == GIB ? MAP_HUGE_1GB : MAP_HUGE_2MB), -1, 0);
	if (p.mem == MAP_FAILED)
		die("private mapping");
	populate(&p);
	do_fork(101);
	print(insn, median(), "%s fork, private, %s", name, all);
}

static void plain_2m(void) { plain("2M", PMD, 256, "256 pages"); }
static void plain_1g(void) { plain("1G", GIB, 1, "one page"); }

/* --- 4 KiB at a time --- */

static bool have_hgm(void) { return !madvise(0, 0, MADV_SPLIT); }

/* Makes the area's mapping anew: no page table below the top is left of the old one. */
static void renew(struct area *a, uint64_t mode)
{
	if (a->uffd)
		close(a->uffd);
	if (munmap(a->mem, a->size))
		die("munmap");
	map_area(a);
	use_uffd(a, mode, UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
		 (a->step == GIB ? UFFD_FEATURE_MINOR_HUGETLBFS : UFFD_FEATURE_MINOR_SHMEM));
	if (a->step == GIB && madvise(a->mem, a->size, MADV_SPLIT))
		die("MADV_SPLIT");
}

static void continue_4k(void)
{
	static const char *what[] = { "ioctl", "fault to wake-up" }, *where[] = { "table is there", "new table" };

	for (int hgm = 0; hgm < 2; hgm++) {
		bool can = !hgm || have_hgm();
		struct area a = { 0 };

		if (can)
			a = new_area(hgm ? GIB : PAGE, GIB);
		for (int i = 0; i < 4; i++) {
			bool fault = i & 2, far = i & 1;
			size_t stride = far ? PMD : PAGE;

			if (can) {
				/* shmem's pages get into the page cache without a mapping */
				for (size_t o = 0; !hgm && o < 512 * stride; o += stride)
					if (pwrite(a.fd, "x", 1, o) != 1)
						die("pwrite");
				renew(&a, UFFDIO_REGISTER_MODE_MINOR);
				if (fault)
					start_handler(&a, PAGE);
				for (size_t o = 0; o < 512 * stride; o += stride)
					if (fault)
						MEASURE(*(volatile char *)(a.mem + o));
					else
						MEASURE(cont(&a, o, PAGE));
				if (fault)	/* the handler keeps the descriptor */
					a.uffd = 0;
			}
			print("instructions", can ? (double)median() : -1, "%s CONTINUE, %s, %s",
			      hgm ? "HGM 4K" : "shmem 4K", what[fault], where[far]);
		}
		if (can)
			free_area(&a);
	}
}

/* One 4 KiB entry in each 2 MiB; what then fills the rest cannot use larger ones. */
static void first_entries(struct area *a)
{
	for (size_t o = 0; o < a->size; o += PMD)
		cont(a, o, PAGE);
}

static void fill_4k(struct area *a)
{
	first_entries(a);
	for (size_t o = 0; o < a->size; o += PMD)
		cont(a, o + PAGE, PMD - PAGE);
}

static uint64_t page_tables(void)
{
	char line[256];
	uint64_t kib = 0;
	FILE *f = fopen("/proc/self/status", "r");

	if (!f)
		die("status");
	while (fgets(line, sizeof(line), f))
		sscanf(line, "VmPTE: %lu", &kib);
	fclose(f);
	return kib << 10;
}

static uint64_t smaps_kib(struct area *a, const char *name)
{
	char line[512];
	bool ours = false;
	uint64_t from, to, value = 0;
	FILE *f = fopen("/proc/self/smaps", "r");

	if (!f)
		die("smaps");
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
			ours = from == (uintptr_t)a->mem;
		else if (ours && !strncmp(line, name, strlen(name)))
			value = strtoull(line + strlen(name), NULL, 10);
	}
	fclose(f);
	return value;
}

static void expect_mapped(struct area *a, const char *name)
{
	if (smaps_kib(a, name) != a->size >> 10)
		errno = 0, die("not all of the memory is %s", name);
}

static void range(void)
{
	static const char *rows[] = {
		"range CONTINUE in 4K steps", "range CONTINUE in 2M steps",
		"collapse of 4K entries", "munmap of 4K entries" };
	struct area a;
	double value[4] = { -1, -1, -1, -1 };

	if (have_hgm()) {
		a = new_area(GIB, GIB);
		renew(&a, UFFDIO_REGISTER_MODE_MINOR);
		first_entries(&a);
		for (size_t o = 0; o < a.size; o += PMD)
			MEASURE(cont(&a, o + PAGE, PMD - PAGE));
		value[0] = median() / 511.0;
		expect_mapped(&a, "HugetlbPteMapped:");
		MEASURE(if (madvise(a.mem, a.size, MADV_COLLAPSE)) die("MADV_COLLAPSE"));
		value[2] = median() / 262144.0;
		expect_mapped(&a, "HugetlbPudMapped:");

		renew(&a, UFFDIO_REGISTER_MODE_MINOR);
		cont(&a, 0, PMD);
		MEASURE(cont(&a, PMD, GIB - PMD));
		value[1] = median() / 511.0;
		expect_mapped(&a, "HugetlbPmdMapped:");

		renew(&a, UFFDIO_REGISTER_MODE_MINOR);
		fill_4k(&a);
		MEASURE(if (munmap(a.mem, a.size)) die("munmap"));
		value[3] = median() / 262144.0;
	}
	for (int i = 0; i < 4; i++)
		print("instructions per leaf", value[i], "HGM %s", rows[i]);
}

/* What other system calls do with a page that is mapped by 4 KiB entries only. */
static void others(void)
{
	double change = -1, move = -1, copy = -1;
	struct area a;
	char *to;

	if (have_hgm()) {
		a = new_area(GIB, GIB);
		renew(&a, UFFDIO_REGISTER_MODE_MINOR);
		fill_4k(&a);
		MEASURE(if (mprotect(a.mem, a.size, PROT_READ)) die("mprotect"));
		change = median() / 262144.0;
		if (mprotect(a.mem, a.size, PROT_READ | PROT_WRITE))
			die("mprotect");

		to = mmap(NULL, 2 * GIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		to = (char *)(((uintptr_t)to + GIB - 1) & -GIB);
		MEASURE(to = mremap(a.mem, a.size, a.size, MREMAP_MAYMOVE | MREMAP_FIXED, to));
		move = median();
		if (to == MAP_FAILED)
			die("mremap");
		a.mem = to;
		expect_mapped(&a, "HugetlbPteMapped:");
		close(a.uffd);

		/* Page tables of shared memory are copied for write-protection only. */
		if (munmap(a.mem, a.size))
			die("munmap");
		map_area(&a);
		use_uffd(&a, UFFDIO_REGISTER_MODE_MINOR | UFFDIO_REGISTER_MODE_WP, UFFD_FEATURE_MINOR_HUGETLBFS |
			 UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_EVENT_FORK);
		if (madvise(a.mem, a.size, MADV_SPLIT))
			die("MADV_SPLIT");
		fill_4k(&a);
		start_handler(&a, PAGE);
		do_fork(3);
		copy = median() / 262144.0;
	}
	print("instructions per leaf", change, "HGM mprotect of 4K entries");
	print("instructions", move, "HGM mremap of 4K entries");
	print("instructions per leaf", copy, "HGM fork of 4K entries, uffd-wp");
}

static void copy_4k(struct area *a, size_t offset)
{
	static char from[PAGE] __attribute__((aligned(PAGE))) = "x";
	struct uffdio_copy c = { .dst = (uintptr_t)a->mem + offset, .src = (uintptr_t)from, .len = PAGE };

	if (ioctl(a->uffd, UFFDIO_COPY, &c))
		die("UFFDIO_COPY at %#zx", offset);
}

static void protect(struct area *a, uint64_t mode)
{
	struct uffdio_writeprotect wp = { .range = { (uintptr_t)a->mem, a->size }, .mode = mode };

	if (ioctl(a->uffd, UFFDIO_WRITEPROTECT, &wp))
		die("UFFDIO_WRITEPROTECT");
}

/* Nothing is in the file, and nothing is mapped. */
static void empty(struct area *a)
{
	if (fallocate(a->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, a->size))
		die("fallocate");
	renew(a, UFFDIO_REGISTER_MODE_MISSING);
}

/* What fills, and write-protects, 4 KiB at a time. Copying is part of it. */
static void fill(void)
{
	static const char *name[] = { "shmem", "HGM" };
	const char *leaf = "instructions per leaf";

	for (int hgm = 0; hgm < 2; hgm++) {
		double first = -1, near = -1, far = -1, wp = -1, unwp = -1;
		struct area a;

		if (!hgm || have_hgm()) {
			a = new_area(hgm ? GIB : PAGE, GIB);
			for (int i = 0; i < 11; i++) {
				empty(&a);
				MEASURE(copy_4k(&a, 0));
			}
			first = median();
			for (size_t o = PAGE; o < PMD; o += PAGE)
				MEASURE(copy_4k(&a, o));
			near = median();
			for (size_t o = PMD; o < GIB; o += PMD)
				MEASURE(copy_4k(&a, o));
			far = median();
			free_area(&a);
			close(a.uffd);

			a = new_area(hgm ? GIB : PAGE, GIB);
			renew(&a, UFFDIO_REGISTER_MODE_MINOR | UFFDIO_REGISTER_MODE_WP);
			if (hgm)
				fill_4k(&a);
			else
				populate(&a);
			for (int i = 0; i < 5; i++) {
				MEASURE(protect(&a, UFFDIO_WRITEPROTECT_MODE_WP));
				protect(&a, 0);
			}
			wp = median() / 262144.0;
			for (int i = 0; i < 5; i++) {
				protect(&a, UFFDIO_WRITEPROTECT_MODE_WP);
				MEASURE(protect(&a, 0));
			}
			unwp = median() / 262144.0;
			free_area(&a);
		}
		print("instructions", first, "%s 4K COPY, the first", name[hgm]);
		print("instructions", near, "%s 4K COPY, table is there", name[hgm]);
		print("instructions", far, "%s 4K COPY, new table", name[hgm]);
		print(leaf, wp, "%s write-protection of 4K entries", name[hgm]);
		print(leaf, unwp, "%s end of write-protection of 4K entries", name[hgm]);
	}
}

static void tables(void)
{
	static const int count[] = { 1, 1000, 1000, 262144 };
	struct area a;

	if (have_hgm())
		a = new_area(GIB, GIB);
	for (int i = 0; i < 4; i++) {
		int n = count[i], page = 0;
		uint64_t before = 0;

		if (have_hgm()) {
			renew(&a, UFFDIO_REGISTER_MODE_MINOR);
			before = page_tables();
			if (n == 262144)
				fill_4k(&a);
			else
				for (int k = 0; k < n; k++, page += i == 2 ? 509 : 1)
					cont(&a, page % 262144 * PAGE, PAGE);
		}
		print("bytes", have_hgm() ? (double)(page_tables() - before) : -1,
		      "HGM page tables, %d page%s resolved%s", n, n > 1 ? "s" : "",
		      n != 1000 ? "" : i == 2 ? ", scattered" : ", in a row");
	}
}

int main(int argc, char **argv)
{
	static const struct { const char *name; void (*run)(void); } parts[] = {
		{ "2M", plain_2m }, { "1G", plain_1g }, { "continue", continue_4k },
		{ "range", range }, { "others", others }, { "fill", fill },
		{ "tables", tables } };
	int status, failed = 0;

	for (int i = 0; i < 1001; i++)
		MEASURE();
	overhead = median();

	for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++) {
		bool wanted = argc < 2;
		pid_t pid;

		for (int j = 1; j < argc; j++)
			wanted |= !strcmp(argv[j], parts[i].name);
		if (!wanted)
			continue;
		fprintf(stderr, "bench: %s\n", parts[i].name);
		pid = fork();
		if (pid < 0)
			die("fork");
		if (!pid) {
			set_priority(1);
			parts[i].run();
			exit(0);
		}
		if (waitpid(pid, &status, 0) != pid || status) {
			fprintf(stderr, "bench: part %s failed\n", parts[i].name);
			failed = 1;
		}
	}
	return failed;
}
