// SPDX-License-Identifier: GPL-2.0
/*
 * A virtual machine that is migrated while it runs, from one process to another.
 *
 * Its memory is 1 GiB hugetlb pages. Its processors run a program that visits all
 * pages in a random order, checks what is in them, and rewrites one in HOT. Pre-copy
 * sends all of the memory, then what has been written to meanwhile, which asynchronous
 * write protection and PAGEMAP_SCAN tell. Then the machine stops, and goes on in the
 * destination, where what is still missing is fetched on a fault (UFFDIO_CONTINUE) or
 * comes with the background stream. On a kernel with MADV_SPLIT all of this is done
 * by 4 KiB; on others it is the same program, but a page is 1 GiB. With -m the memory
 * is ordinary shared memory, on any kernel.
 *
 * Change it for what a migration does; demo/machine.h is the machine.
 */
#include "machine.h"
#include <getopt.h>
#include <poll.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/utsname.h>
#include <sys/wait.h>

#define CHUNK	(16 * PAGE)	/* sent at once at the most */
#define ROUNDS	4		/* of pre-copy at the most */

static int megabits = 250;
static bool shmem;		/* ordinary shared memory instead of hugetlb */
static bool split;		/* does this kernel have MADV_SPLIT? */
static size_t step;		/* the smallest page there is then */
static int conn;		/* to the other process */
static FILE *out;

/* --- the connection --- */

enum what { PAGES, SWITCH, LOW, GET, END };	/* SWITCH: when it stopped is in offset */
struct frame {
	uint64_t offset, length;
	uint32_t what;
};

static uint64_t due;		/* when what has been sent until now is through the link */

static void send_paced(uint32_t what, uint64_t offset, const void *data, uint64_t length)
{
	struct frame f = { offset, length, what };
	uint64_t t = now();

	if (due > t) {
		struct timespec ts = { (due - t) / NSEC, (due - t) % NSEC };

		nanosleep(&ts, NULL);
	}
	due = link_free(due, sizeof(f) + length, megabits);
	send_all(conn, &f, sizeof(f));
	send_all(conn, data, length);
}

static void must_receive(void *buf, size_t len)
{
	if (!receive(conn, buf, len))
		errno = 0, die("the other process went away");
}

/* --- memory --- */

static int new_memory(void)
{
	int fd = memfd_create("guest", shmem ? 0 : MFD_HUGETLB | MFD_HUGE_1GB);

	if (fd < 0 || ftruncate(fd, size) || fallocate(fd, 0, 0, size))
		die("%d GiB of memory", gigabytes);
	return fd;
}

static char *map_memory(int fd)
{
	char *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (at == MAP_FAILED)
		die("a mapping of %d GiB", gigabytes);
	return at;
}

/* Faults, write protection, and what is written to, are by @step from now on. */
static int watch_memory(uint64_t features, uint64_t mode)
{
	if (split && madvise(mem, size, MADV_SPLIT))
		die("MADV_SPLIT");
	return open_uffd(mem, size, features, mode);
}

/* How KVM maps the memory. */
static void report_stage2(const char *when)
{
	uint64_t pages[3];

	stage2_pages(pages);
	fprintf(out, "%s\t%lu, %lu, %lu\n", when, pages[0], pages[1], pages[2]);
}

/* --- the source --- */

static bool *dirty;		/* pages that have to be sent */

static void protect_memory(void)
{
	int uffd = watch_memory(UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_ASYNC |
				UFFD_FEATURE_PAGEFAULT_FLAG_WP, UFFDIO_REGISTER_MODE_WP);
	struct uffdio_writeprotect wp = {
		.range = { (uintptr_t)mem, size }, .mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};

	if (ioctl(uffd, UFFDIO_WRITEPROTECT, &wp))
		die("UFFDIO_WRITEPROTECT");
}

/* What has been written to since the last time is dirty; returns how many pages that is. */
static size_t scan(int pagemap)
{
	static struct page_region region[512];
	uint64_t at = (uintptr_t)mem, end = at + size;
	size_t n = 0;

	while (at < end) {
		struct pm_scan_arg arg = {
			.size = sizeof(arg), .start = at, .end = end,
			.flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
			.vec = (uintptr_t)region, .vec_len = 512,
			.category_mask = PAGE_IS_WRITTEN, .return_mask = PAGE_IS_WRITTEN,
		};
		int regions = ioctl(pagemap, PAGEMAP_SCAN, &arg);

		if (regions < 0)
			die("PAGEMAP_SCAN");
		for (int i = 0; i < regions; i++) {
			size_t pages = (region[i].end - region[i].start) / PAGE;

			memset(dirty + (region[i].start - (uintptr_t)mem) / PAGE, true, pages);
			n += pages;
		}
		at = arg.walk_end;
	}
	return n;
}

/*
 * Sends the next dirty pages from @at on, as many as are in a row within an aligned
 * chunk. Returns how many; 0 if there are none up to @end.
 */
static size_t send_next(size_t *at, size_t end)
{
	size_t first, stop;

	while (*at < end && !dirty[*at])
		++*at;
	first = *at;
	stop = first - first % (CHUNK / PAGE) + CHUNK / PAGE;
	for (; *at < stop && *at < end && dirty[*at]; ++*at)
		dirty[*at] = false;
	if (*at > first)
		send_paced(PAGES, first * PAGE, mem + first * PAGE, (*at - first) * PAGE);
	return *at - first;
}

/* Until little is left, or it does not get less. Returns the number of rounds. */
static int precopy(int pagemap)
{
	size_t n = npages, left;

	memset(dirty, true, npages);
	for (int round = 1; ; round++, n = left) {
		for (size_t at = 0; send_next(&at, npages); )
			;
		printf("pre-copy: round %d sent %zu pages\n", round, n);
		left = scan(pagemap);
		if (left * 2 > n || round == ROUNDS || left < 256)
			return round;
	}
}

/* Returns how many pages are left for post-copy. */
static size_t switch_over(int pagemap, uint64_t stopped)
{
	struct registers regs;
	size_t left = 0;

	stop_machine();
	scan(pagemap);
	send_paced(SWITCH, stopped, NULL, 0);
	for (int i = 0; i < nvcpus; i++) {
		get_registers(vcpu[i].fd, &regs);
		send_all(conn, &regs, sizeof(regs));
	}
	send_paced(LOW, 0, low, low_size);
	send_all(conn, dirty, npages);
	due = link_free(due, npages / 8, megabits);	/* 1 bit each, in a real VMM */
	for (size_t p = 0; p < npages; p++)
		left += dirty[p];
	printf("switched over with %zu pages missing\n", left);
	return left;
}

static void postcopy(size_t left)
{
	size_t cursor = 0;
	struct frame f;

	while (left) {
		struct pollfd p = { conn, POLLIN, 0 };
		size_t n, at, end;

		if (poll(&p, 1, 0) != 1) {
			left -= send_next(&cursor, npages);
			continue;
		}
		must_receive(&f, sizeof(f));
		at = f.offset / PAGE;
		end = at + f.length / PAGE;
		while ((n = send_next(&at, end)))
			left -= n;
	}
	send_paced(END, 0, NULL, 0);
	while (receive(conn, &f, sizeof(f)))	/* late requests */
		;
}

static void source(void)
{
	int pagemap = open("/proc/self/pagemap", O_RDONLY), rounds;
	uint64_t t, before, during, stopped;
	size_t left;

	dirty = malloc(npages);
	if (pagemap < 0 || !dirty)
		die("pagemap");
	mem = map_memory(new_memory());
	make_machine();
	boot_machine();
	start_machine();
	sleep(2);
	fprintf(out, "visits/s before\t%lu\n", rate());
	fprintf(out, "stage 2: 1 GiB, 2 MiB, 4 KiB pages\t\n");
	report_stage2("  before");

	t = now();
	before = visits();
	protect_memory();
	rounds = precopy(pagemap);
	during = rate_since(t, before);
	report_stage2("  during pre-copy");

	stopped = now();
	left = switch_over(pagemap, stopped);
	fprintf(out, "visits/s during pre-copy\t%lu\n", during);
	fprintf(out, "pre-copy took\t%.2f s, %d rounds\n", (stopped - t) / 1e9, rounds);
	fprintf(out, "4 KiB pages missing at the switch\t%zu of %zu\n", left, npages);
	fflush(out);		/* before the destination's */
	postcopy(left);
}

/* --- the destination --- */

static char *alias;		/* what arrives is written here: no faults */
static int uffd;
static struct part {		/* of the memory, one step long */
	atomic_size_t missing;	/* pages */
	atomic_uint_fast64_t asked;	/* when a fault asked for it, or 0 */
} *parts;
static uint64_t *waits;
static size_t nwaits;

static void map(uint64_t offset, uint64_t len)
{
	while (len) {
		struct uffdio_continue c = { .range = { (uintptr_t)mem + offset, len } };

		if (!ioctl(uffd, UFFDIO_CONTINUE, &c))
			return;
		if (errno == EEXIST) {		/* of one page; go on after it */
			struct uffdio_range r = { (uintptr_t)mem + offset, step };

			if (ioctl(uffd, UFFDIO_WAKE, &r))
				die("UFFDIO_WAKE");
			offset += step, len -= step;
		} else if (errno != EAGAIN) {
			die("UFFDIO_CONTINUE of %#lx at %#lx", len, offset);
		} else if (c.mapped > 0) {
			offset += c.mapped, len -= c.mapped;
		}
	}
}

/*
 * A part can arrive while it is being asked for: whoever is last to see it maps it, a
 * second mapping of it does no harm, nor does a request for what has been sent.
 */
static void *handle_faults(void *arg)
{
	struct pollfd p = { uffd, POLLIN, 0 };
	struct uffd_msg msg;

	(void)arg;
	for (;;) {
		struct frame f = { .length = step, .what = GET };
		struct part *part;
		uint64_t t;

		if (poll(&p, 1, -1) < 0 && errno != EINTR)
			die("poll");
		t = now();
		if (read(uffd, &msg, sizeof(msg)) != sizeof(msg))
			continue;
		f.offset = (msg.arg.pagefault.address - (uintptr_t)mem) & ~(step - 1);
		part = &parts[f.offset / step];
		if (!part->missing) {
			map(f.offset, step);
		} else if (!part->asked) {
			part->asked = t;
			send_all(conn, &f, sizeof(f));
		}
	}
}

/* Map, without having been asked, what came with pre-copy and was not written to. */
static void *map_rest(void *arg)
{
	(void)arg;
	for (size_t i = 0, n; i < size / step; i += n + !n) {
		/* Up to 2 MiB at a time, so that tables fill at once */
		for (n = 0; i + n < size / step && n < 512 && !parts[i + n].missing; n++)
			;
		if (n)
			map(i * step, n * step);
	}
	return NULL;
}

static void arrive(uint64_t offset, uint64_t len)
{
	for (uint64_t o = offset; o < offset + len; o += PAGE) {
		struct part *part = &parts[o / step];

		if (--part->missing)
			continue;
		map(o & ~(step - 1), step);
		if (part->asked)
			waits[nwaits++] = now() - part->asked;
	}
}

/* false: it was something else, which is in @f */
static bool receive_pages(struct frame *f)
{
	must_receive(f, sizeof(*f));
	if (f->what == PAGES)
		must_receive(alias + f->offset, f->length);
	return f->what == PAGES;
}

static void receive_state(void)
{
	bool *missing = malloc(npages);
	struct registers regs;
	struct frame f;

	if (!missing)
		die("no memory");
	for (int i = 0; i < nvcpus; i++) {
		must_receive(&regs, sizeof(regs));
		set_registers(vcpu[i].fd, &regs);
	}
	must_receive(&f, sizeof(f));
	must_receive(low, low_size);
	must_receive(missing, npages);
	for (size_t p = 0; p < npages; p++)
		parts[p * PAGE / step].missing += missing[p];
	free(missing);
}

static void report_waits(void)
{
	uint64_t all = 0;

	fprintf(out, "processors' waits for the source\t%zu\n", nwaits);
	if (!nwaits)
		return;
	qsort(waits, nwaits, sizeof(*waits), by_value);
	for (size_t i = 0; i < nwaits; i++)
		all += waits[i];
	fprintf(out, "  median\t%.2f ms\n", waits[nwaits / 2] / 1e6);
	fprintf(out, "  worst\t%.2f ms\n", waits[nwaits - 1] / 1e6);
	fprintf(out, "  together\t%.2f s\n", all / 1e9);
}

/* Let the machine visit and check every page once more. */
static void check_all(void)
{
	for (int i = 0; i < nvcpus; i++) {
		uint64_t end = state[i].visits + npages / nvcpus;

		while (state[i].visits < end)
			usleep(10000);
	}
	stop_machine();
	errno = 0;
	for (int i = 0; i < nvcpus; i++)
		if (state[i].errors)
			die("processor %d found errors", i);
	fprintf(out, "every page checked by the machine itself\tgood\n");
}

static void destination(void)
{
	struct uffdio_range all = { .len = size };
	pthread_t faults, rest;
	uint64_t stopped, t;
	struct frame f;
	int fd = new_memory();

	alias = map_memory(fd);
	mem = map_memory(fd);
	make_machine();
	uffd = watch_memory(shmem ? UFFD_FEATURE_MINOR_SHMEM : UFFD_FEATURE_MINOR_HUGETLBFS,
			    UFFDIO_REGISTER_MODE_MINOR);
	parts = calloc(size / step, sizeof(*parts));
	waits = calloc(size / step, sizeof(*waits));
	if (!parts || !waits)
		die("no memory");

	while (receive_pages(&f))
		;
	stopped = f.offset;
	receive_state();
	start_thread(&faults, handle_faults, NULL);
	start_machine();
	start_thread(&rest, map_rest, NULL);
	while (receive_pages(&f))
		arrive(f.offset, f.length);
	t = now();
	pthread_join(rest, NULL);
	fprintf(out, "the machine stood still for\t%.1f ms\n", (first_run - stopped) / 1e6);
	fprintf(out, "post-copy took\t%.2f s\n", (t - stopped) / 1e9);
	report_waits();
	sleep(2);
	fprintf(out, "after the migration\t\n");
	report_stage2("  stage 2: 1 GiB, 2 MiB, 4 KiB pages");
	if (split) {
		t = now();
		for (size_t o = 0; o < size; o += GIB)
			collapse_gib(mem + o);
		fprintf(out, "MADV_COLLAPSE took\t%.1f ms\n", (now() - t) / 1e6);
	}
	all.start = (uintptr_t)mem;
	if (ioctl(uffd, UFFDIO_UNREGISTER, &all))
		die("UFFDIO_UNREGISTER");
	sleep(2);
	report_stage2("  stage 2 at the end");
	fprintf(out, "visits/s after\t%lu\n", rate());
	check_all();
}

/* The machine's program visits all pages in one period only if there are 2^n of them. */
static bool valid(int n, int max)
{
	return n >= 1 && n <= max && !(n & (n - 1));
}

static int usage(void)
{
	fprintf(stderr, "usage: migrate [-g GiB] [-c processors] [-r Mbit/s] [-m] [-o file]\n"
		"-m: ordinary shared memory instead of hugetlb\n"
		"GiB and processors are powers of 2; it needs twice as much memory\n");
	return 2;
}

int main(int argc, char **argv)
{
	const char *file = "/dev/stdout";
	struct utsname name;
	int opt, pair[2], status;
	pid_t child;

	while ((opt = getopt(argc, argv, "g:c:r:mo:")) != -1) {
		switch (opt) {
		case 'g': gigabytes = atoi(optarg); break;
		case 'c': nvcpus = atoi(optarg); break;
		case 'r': megabits = atoi(optarg); break;
		case 'm': shmem = true; break;
		case 'o': file = optarg; break;
		default: return usage();
		}
	}
	if (optind < argc || !valid(gigabytes, 8) || !valid(nvcpus, VCPUS) || megabits < 1)
		return usage();
	size = gigabytes * GIB;
	npages = size / PAGE;
	split = !shmem && !madvise(NULL, 0, MADV_SPLIT);
	step = split || shmem ? PAGE : GIB;
	out = fopen(file, "a");
	if (!out)
		die("%s", file);
	setvbuf(stdout, NULL, _IOLBF, 0);
	uname(&name);
	fprintf(out, "kernel\t%s\nmemory\t%d %s\nprocessors\t%d\n", name.release, gigabytes,
		shmem ? "GiB, ordinary" : "pages of 1 GiB", nvcpus);
	fflush(out);

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
		die("socketpair");
	child = fork();
	if (child < 0)
		die("fork");
	conn = pair[!child];
	close(pair[!!child]);
	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		destination();
		if (fclose(out))
			die("%s", file);
		_exit(0);
	}
	source();
	if (waitpid(child, &status, 0) != child || status)
		errno = 0, die("the destination ended with status %#x", status);
	return 0;
}
