// SPDX-License-Identifier: GPL-2.0
/*
 * A post-copy migration in one program: a source process holds the content of
 * files, a destination process runs threads on memory that has not arrived yet.
 *
 * Two connections lead from the source to the destination, as with QEMU's
 * postcopy-preempt: one for what was asked for, one for the background stream.
 * Both share one paced link; what was asked for goes first. The destination's
 * memory is a memfd mapped twice. Arriving data is written through a mapping
 * that userfaultfd does not know; UFFDIO_CONTINUE then maps it where the
 * threads run. On hugetlb memory of a kernel with MADV_SPLIT that works for
 * every 4 KiB; without, only when a whole 1 GiB page has arrived. With -m copy
 * there is one mapping, and UFFDIO_COPY fills it, as in VMMs of today.
 *
 * Change it for what the transfer does; demo/run says which transfers are made.
 */
#include "common.h"
#include <arpa/inet.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/wait.h>

#define CHUNK	(16 * PAGE)	/* of the background stream */

static int gigabytes = 2, nthreads = 4, touches = 2000, megabits = 250;
static uint64_t seed = 1;
static const char *outdir = ".";
static size_t size;

static uint64_t next_random(uint64_t *state)		/* splitmix64 */
{
	uint64_t z = *state += 0x9e3779b97f4a7c15;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	return z ^ (z >> 31);
}

/* Depends on every byte and on the order of the words. */
static uint64_t checksum(uint64_t sum, const uint64_t *word, size_t bytes)
{
	for (size_t i = 0; i < bytes / 8; i++) {
		sum = (sum ^ word[i]) * 0x9e3779b97f4a7c15;
		sum ^= sum >> 32;
	}
	return sum;
}

/* --- the protocol --- */

enum what { HELLO, START, GET, DATA, SUM };	/* SUM: the checksum is in offset */
struct frame {
	uint64_t offset;
	uint32_t length;
	uint32_t what;
};

/* --- the source --- */

static char *content;
static size_t content_size;

/*
 * The memory is the files' bytes over and over; from the second time on each
 * word is XORed with a key of that lap, so that no two pages are alike.
 */
static void fill(void *buf, uint64_t offset)
{
	uint64_t lap = offset / content_size, state = seed + lap;
	uint64_t key = lap ? next_random(&state) : 0;
	const uint64_t *from = (void *)(content + offset % content_size);
	uint64_t *to = buf;

	for (size_t i = 0; i < PAGE / 8; i++)
		to[i] = from[i] ^ key;
}

static void load(char **files, int n)
{
	struct stat st;

	for (int i = 0; i < n; i++) {
		int fd = open(files[i], O_RDONLY);
		size_t done = 0;

		if (fd < 0 || fstat(fd, &st))
			die("%s", files[i]);
		if (content_size + st.st_size > size)
			st.st_size = size - content_size;
		content = realloc(content, content_size + st.st_size);
		if (!content)
			die("no memory for %s", files[i]);
		while (done < (size_t)st.st_size) {
			ssize_t got = read(fd, content + content_size + done, st.st_size - done);

			if (got <= 0)
				die("%s", files[i]);
			done += got;
		}
		content_size += done;
		close(fd);
	}
	content_size &= ~(PAGE - 1);
	if (!content_size)
		errno = 0, die("the files hold less than one page");
	printf("source: %zu MiB of files, repeated to fill %d GiB\n", content_size >> 20, gigabytes);
}

/* A run of pages not sent yet, within [*from, end) and one aligned chunk. */
static uint32_t next_run(const bool *sent, uint64_t *from, uint64_t end)
{
	uint64_t p, stop;

	while (*from < end && sent[*from / PAGE])
		*from += PAGE;
	stop = (*from & ~(CHUNK - 1)) + CHUNK;
	if (stop > end)
		stop = end;
	for (p = *from; p < stop && !sent[p / PAGE]; p += PAGE)
		;
	return p - *from;
}

static void source(int demand, int stream, char **files, int nfiles)
{
	size_t pages = size / PAGE, first = 0, asked = 0;
	bool *sent = calloc(pages, sizeof(*sent));
	/* Each page is asked for once at most. */
	struct frame *queue = calloc(pages + 1, sizeof(*queue)), f = { .what = HELLO };
	char *buf = aligned_alloc(PAGE, PAGE + CHUNK), *head;
	uint64_t cursor = 0, due = 0, sum = 0;

	if (!sent || !queue || !buf)
		die("no memory");
	head = (buf += PAGE) - sizeof(f);	/* a frame and its data go together */
	load(files, nfiles);
	send_all(demand, &f, sizeof(f));
	if (!receive(demand, &f, sizeof(f)) || f.what != START)
		errno = 0, die("the destination did not start");

	for (size_t left = size; left; left -= f.length) {
		bool wanted = false;
		uint64_t t;

		/* Until the link is free again, listen for requests. */
		do {
			struct pollfd p = { demand, POLLIN, 0 };
			int64_t wait = due - (t = now());
			struct timespec ts = { 0, wait > 0 ? wait : 0 };

			if (ppoll(&p, 1, &ts, NULL) < 0 && errno != EINTR)
				die("ppoll");
			if (p.revents) {
				if (!receive(demand, &queue[asked], sizeof(f)) || asked == pages)
					errno = 0, die("the destination went away");
				asked++;
				t = 0;		/* look for more requests */
			}
		} while (t < due);

		while (first < asked && !wanted) {
			f.offset = queue[first].offset;
			f.length = next_run(sent, &f.offset, queue[first].offset + queue[first].length);
			if (f.length)
				wanted = true;
			else
				first++;
		}
		if (!wanted) {
			f.length = next_run(sent, &cursor, size);
			f.offset = cursor;
		}
		f.what = DATA;
		for (uint32_t i = 0; i < f.length; i += PAGE) {
			fill(buf + i, f.offset + i);
			sent[(f.offset + i) / PAGE] = true;
		}
		memcpy(head, &f, sizeof(f));
		send_all(wanted ? demand : stream, head, sizeof(f) + f.length);
		due = link_free(due, sizeof(f) + f.length, megabits);
	}

	shutdown(demand, SHUT_WR);
	for (uint64_t o = 0; o < size; o += PAGE) {
		fill(buf, o);
		sum = checksum(sum, (void *)buf, PAGE);
	}
	f = (struct frame){ .what = SUM, .offset = sum };
	send_all(stream, &f, sizeof(f));
	shutdown(stream, SHUT_WR);
	/* Late requests for what is on its way need no answer. */
	while (receive(demand, &f, sizeof(f)))
		;
	exit(0);
}

/* --- the destination --- */

struct worker {
	pthread_t thread;
	uint64_t rng, end;
	struct touch { uint64_t offset, value, start, blocked; } *touch;
};

static char *mem, *alias;	/* the threads' mapping, and the one for arriving data */
static int uffd, demand_fd, stream_fd, quit_pipe[2];
static size_t step;		/* what UFFDIO_CONTINUE or UFFDIO_COPY can map */
static bool hgm, copies;
static struct worker *workers;
static atomic_uint_fast64_t *filled, arrived;	/* bytes, per GiB and in all */
static atomic_uint_fast64_t collapse_time;
static atomic_int faults, finished, collapses;
static atomic_bool *asked;
static uint64_t start, source_sum;
static pthread_barrier_t ready;
static pthread_mutex_t sample_lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t peak_pte, most_memmap, memmap_at_start;

/* Pages that hold struct pages: what HVO saves is missing here. */
static uint64_t memmap_pages(void)
{
	return number_in("/proc/vmstat", "nr_memmap_pages ") +
	       number_in("/proc/vmstat", "nr_memmap_boot_pages ");
}

static void sample(void)
{
	uint64_t pte = number_in("/proc/self/status", "VmPTE:"), memmap = memmap_pages();

	pthread_mutex_lock(&sample_lock);
	if (pte > peak_pte)
		peak_pte = pte;
	if (memmap > most_memmap)
		most_memmap = memmap;
	pthread_mutex_unlock(&sample_lock);
}

/* Give the threads what has arrived: by a copy of data, or where it has been written to. */
static void map(uint64_t offset, uint64_t len, char *data)
{
	while (len) {
		struct uffdio_copy y = { .dst = (uintptr_t)mem + offset, .src = (uintptr_t)data, .len = len };
		struct uffdio_continue c = { .range = { (uintptr_t)mem + offset, len } };
		int64_t done;

		if (!ioctl(uffd, copies ? UFFDIO_COPY : UFFDIO_CONTINUE, copies ? (void *)&y : &c))
			return;
		if (errno != EAGAIN)
			die("%s of %#lx at %#lx", copies ? "UFFDIO_COPY" : "UFFDIO_CONTINUE", (long)len, (long)offset);
		done = copies ? y.copy : c.mapped;
		if (done > 0)
			offset += done, len -= done, data += done;
	}
}

static void collapse(uint64_t offset)
{
	uint64_t t;

	sample();
	t = now();
	collapse_gib(mem + offset);
	t = now() - t;
	collapse_time += t;
	collapses++;
	printf("destination: GiB %lu is complete, mapped by one entry again after %.1f ms\n",
	       offset / GIB, t / 1e6);
}

static void *receiver(void *arg)
{
	char *data = copies ? malloc(CHUNK) : NULL;
	int fd = *(int *)arg;
	struct frame f;

	if (copies && !data)
		die("malloc");
	while (receive(fd, &f, sizeof(f))) {
		uint64_t gib = f.offset & ~(GIB - 1);

		if (f.what == SUM) {
			source_sum = f.offset;
			continue;
		}
		if (!copies)
			data = alias + f.offset;
		if (f.what != DATA || f.offset + f.length > size || (copies && f.length > CHUNK) ||
		    !receive(fd, data, f.length))
			errno = 0, die("bad frame");
		if (step < GIB)
			map(f.offset, f.length, data);
		if (atomic_fetch_add(&filled[gib / GIB], f.length) + f.length == GIB) {
			if (step == GIB)
				map(gib, GIB, NULL);
			else if (hgm)
				collapse(gib);
		}
		/* The last byte has arrived, and is mapped. */
		if (atomic_fetch_add(&arrived, f.length) + f.length == size)
			sample();
	}
	return NULL;
}

static void *handler(void *arg)
{
	struct uffd_msg msg[16];
	struct pollfd p[2] = { { uffd, POLLIN, 0 }, { quit_pipe[0], POLLIN, 0 } };

	(void)arg;
	while (poll(p, 2, -1) >= 0 && !p[1].revents) {
		ssize_t n = read(uffd, msg, sizeof(msg));

		if (n < 0 && errno != EAGAIN)
			die("read of userfaultfd");
		for (int i = 0; i < n / (ssize_t)sizeof(*msg); i++) {
			uint64_t at = msg[i].arg.pagefault.address - (uintptr_t)mem;
			struct frame f = { at & ~(step - 1), step, GET };

			if (msg[i].event != UFFD_EVENT_PAGEFAULT)
				errno = 0, die("unexpected event %d", msg[i].event);
			faults++;
			if (!atomic_exchange(&asked[f.offset / step], true))
				send_all(demand_fd, &f, sizeof(f));
		}
	}
	return NULL;
}

/* How often this thread went to sleep; who is only preempted does not. */
static long sleeps(void)
{
	struct rusage u;

	if (getrusage(RUSAGE_THREAD, &u))
		die("getrusage");
	return u.ru_nvcsw;
}

static void *work(void *arg)
{
	struct worker *w = arg;

	pthread_barrier_wait(&ready);
	for (int i = 0; i < touches; i++) {
		struct touch *t = &w->touch[i];
		long before = sleeps();

		t->offset = next_random(&w->rng) % (size / 8) * 8;
		t->start = now();
		t->value = *(volatile uint64_t *)(mem + t->offset);
		w->end = now();
		if (sleeps() != before)
			t->blocked = w->end - t->start;
	}
	finished++;
	return NULL;
}

static void *monitor(void *arg)
{
	struct pollfd p = { quit_pipe[0], POLLIN, 0 };

	(void)arg;
	for (int n = 1; !poll(&p, 1, 50); n++) {
		sample();
		if (!(n % 40))
			printf("destination: %3d %% arrived, %d faults, %d of %d threads done\n",
			       (int)(arrived * 100 / size), faults, finished, nthreads);
	}
	return NULL;
}

static void prepare_memory(const char *kind)
{
	const bool shmem = !strcmp(kind, "shmem");
	int fd = memfd_create("guest memory", shmem ? 0 : MFD_HUGETLB | MFD_HUGE_1GB);
	char *any;

	copies = !strcmp(kind, "copy");
	if (fd < 0 || ftruncate(fd, size))
		die("memfd");
	/* UFFDIO_CONTINUE wants the pages in the page cache before the first byte arrives. */
	if (!copies && fallocate(fd, 0, 0, size))
		die("%d GiB of memory (hugepagesz=1G hugepages=%d on the kernel's command line?)",
		    gigabytes, gigabytes);
	any = mmap(NULL, size + GIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (any == MAP_FAILED)
		die("mmap");
	mem = (char *)(((uintptr_t)any + GIB - 1) & ~(GIB - 1));
	mem = mmap(mem, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	alias = copies ? NULL : mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (mem == MAP_FAILED || alias == MAP_FAILED)
		die("mmap");

	if (copies)
		uffd = open_uffd(mem, size, 0, UFFDIO_REGISTER_MODE_MISSING);
	else
		uffd = open_uffd(mem, size, shmem ? UFFD_FEATURE_MINOR_SHMEM : UFFD_FEATURE_MINOR_HUGETLBFS,
				 UFFDIO_REGISTER_MODE_MINOR);

	/* The probe, and then the one call that allows 4 KiB. */
	hgm = (copies || !strcmp(kind, "auto")) && !madvise(0, 0, MADV_SPLIT);
	if ((hgm || copies) && madvise(mem, size, MADV_SPLIT))
		die("MADV_SPLIT");
	step = shmem || hgm ? PAGE : GIB;
}

/* Field of the mapping at mem in /proc/self/smaps, in kB. */
static uint64_t smaps(const char *name)
{
	char line[512];
	bool ours = false;
	uint64_t from, to, value = 0;
	FILE *f = fopen("/proc/self/smaps", "r");

	if (!f)
		die("smaps");
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
			ours = from <= (uintptr_t)mem && (uintptr_t)mem < to;
		else if (ours && !strncmp(line, name, strlen(name)))
			value = strtoull(line + strlen(name), NULL, 10);
	}
	fclose(f);
	return value;
}

static FILE *result_file(const char *name)
{
	char path[4096];
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", outdir, name);
	f = fopen(path, "w");
	if (!f)
		die("%s", path);
	return f;
}

static bool report(const char *kind, uint64_t total)
{
	uint64_t *blocked = calloc((size_t)nthreads * touches, sizeof(*blocked));
	uint64_t first = UINT64_MAX, still = 0, done = 0, sum, pud, t = now();
	int n = 0, wrong = 0;
	bool ok;
	struct utsname u;
	FILE *f;

	if (!blocked || uname(&u))
		die("report");
	printf("destination: verifying every byte\n");
	sum = checksum(0, (void *)mem, size);
	for (int i = 0; i < nthreads; i++) {
		struct worker *w = &workers[i];

		if (w->touch[0].start + w->touch[0].blocked < first)
			first = w->touch[0].start + w->touch[0].blocked;
		if (w->end > done)
			done = w->end;
		for (int j = 0; j < touches; j++) {
			/* What a thread saw while data was arriving is what is there now. */
			if (*(uint64_t *)(mem + w->touch[j].offset) != w->touch[j].value)
				wrong++;
			if (w->touch[j].blocked)
				blocked[n++] = w->touch[j].blocked;
			still += w->touch[j].blocked;
		}
	}
	qsort(blocked, n, sizeof(*blocked), by_value);
	ok = sum == source_sum && !wrong;
	pud = smaps("HugetlbPudMapped:");
	/* A kernel without that line maps hugetlb memory by nothing smaller. */
	if (!hgm && !pud)
		pud = smaps("Shared_Hugetlb:") + smaps("Private_Hugetlb:");

	f = result_file("latency");
	for (int i = 0; i < n; i++)
		fprintf(f, "%.6f\n", blocked[i] / 1e6);
	if (fclose(f))
		die("latency");

	f = result_file("result");
#define PUT(name, fmt, ...) fprintf(f, name "\t" fmt "\n", __VA_ARGS__)
#define MS(x) ((double)(x) / 1e6)
	PUT("kernel", "%s", u.release);
	PUT("memory", "%s", !strcmp(kind, "shmem") ? "shmem" : "hugetlb 1 GiB");
	PUT("filled by", "%s", copies ? "UFFDIO_COPY" : "UFFDIO_CONTINUE");
	PUT("resolves KiB", "%zu", step / 1024);
	PUT("GiB", "%d", gigabytes);
	PUT("link Mbit/s", "%d", megabits);
	PUT("seed", "%lu", seed);
	PUT("threads", "%d", nthreads);
	PUT("touches", "%d", nthreads * touches);
	PUT("first touch ms", "%.3f", MS(first - start));
	PUT("blocked touches", "%d", n);
	PUT("median ms", "%.3f", n ? MS(blocked[(n - 1) / 2]) : 0);
	PUT("p99 ms", "%.3f", n ? MS(blocked[(n - 1) * 99 / 100]) : 0);
	PUT("worst ms", "%.3f", n ? MS(blocked[n - 1]) : 0);
	PUT("waits of a thread ms", "%.1f", MS(still / nthreads));
	PUT("threads done ms", "%.1f", MS(done - start));
	PUT("total ms", "%.1f", MS(total));
	PUT("achieved Mbit/s", "%.0f", size * 8e3 / total);
	PUT("faults", "%d", faults);
	PUT("page tables at peak KiB", "%lu", peak_pte);
	PUT("page tables at end KiB", "%lu", number_in("/proc/self/status", "VmPTE:"));
	PUT("collapse ms", "%.3f", collapses ? MS(collapse_time / collapses) : 0);
	PUT("memmap pages at start", "%lu", memmap_at_start);
	PUT("memmap pages at most", "%lu", most_memmap);
	PUT("wrong reads", "%d", wrong);
	PUT("checksum", "%s", sum == source_sum ? "equal" : "DIFFERENT");
	PUT("GiB mapped by 1 GiB entries", "%lu", pud >> 20);
	PUT("KiB mapped by smaller entries", "%lu", smaps("HugetlbPmdMapped:") + smaps("HugetlbPteMapped:"));
	if (fclose(f))
		die("result");
	printf("destination: checksum %016lx, source %016lx: %s, %d wrong reads (%.1f s)\n", sum, source_sum,
	       sum == source_sum ? "equal" : "DIFFERENT", wrong, (now() - t) / 1e9);
	return ok;
}

static bool destination(const char *kind)
{
	pthread_t receivers[2], handler_thread, monitor_thread;
	struct frame f;
	uint64_t total;

	prepare_memory(kind);
	printf("destination: %d GiB of %s, faults are resolved %zu KiB at a time\n", gigabytes,
	       !strcmp(kind, "shmem") ? "shmem" : "1 GiB hugetlb pages", step / 1024);
	filled = calloc(gigabytes, sizeof(*filled));
	asked = calloc(size / step, sizeof(*asked));
	workers = calloc(nthreads, sizeof(*workers));
	if (!filled || !asked || !workers || pipe(quit_pipe) || pthread_barrier_init(&ready, NULL, nthreads + 1))
		die("destination");
	for (int i = 0; i < nthreads; i++) {
		workers[i].rng = seed * 1000 + i;
		workers[i].touch = calloc(touches, sizeof(struct touch));
		if (!workers[i].touch)
			die("no memory");
		start_thread(&workers[i].thread, work, &workers[i]);
		/* Faults on the threads' own records must not be part of what is measured. */
		for (int j = 0; j < touches; j++)
			workers[i].touch[j].start = 1;
	}
	if (!receive(demand_fd, &f, sizeof(f)) || f.what != HELLO)
		errno = 0, die("the source went away");
	memmap_at_start = memmap_pages();
	sample();

	printf("destination: %d threads start; the link gives %d Mbit/s\n", nthreads, megabits);
	start = now();
	f.what = START;
	send_all(demand_fd, &f, sizeof(f));
	start_thread(&handler_thread, handler, NULL);
	start_thread(&receivers[0], receiver, &demand_fd);
	start_thread(&receivers[1], receiver, &stream_fd);
	start_thread(&monitor_thread, monitor, NULL);
	pthread_barrier_wait(&ready);

	while (arrived < size)
		usleep(1000);
	total = now() - start;
	for (int i = 0; i < nthreads; i++)
		pthread_join(workers[i].thread, NULL);
	close(quit_pipe[1]);
	pthread_join(handler_thread, NULL);
	pthread_join(monitor_thread, NULL);
	shutdown(demand_fd, SHUT_WR);
	pthread_join(receivers[0], NULL);
	pthread_join(receivers[1], NULL);
	return report(kind, total);
}

/* --- both --- */

static int loopback(struct sockaddr_in *addr, bool listening)
{
	socklen_t len = sizeof(*addr);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1, buffer = 8 * CHUNK;

	if (fd < 0 || setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) ||
	    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof(buffer)) ||
	    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof(buffer)))
		die("socket");
	if (listening ? bind(fd, (void *)addr, len) || listen(fd, 2) || getsockname(fd, (void *)addr, &len) :
			connect(fd, (void *)addr, len))
		die("loopback network");
	return fd;
}

int main(int argc, char **argv)
{
	struct sockaddr_in addr = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	const char *kind = "auto";
	int c, listener, status;
	bool ok;
	pid_t child;

	while ((c = getopt(argc, argv, "m:g:t:n:r:s:o:")) != -1) {
		switch (c) {
		case 'm': kind = optarg; break;
		case 'g': gigabytes = atoi(optarg); break;
		case 't': nthreads = atoi(optarg); break;
		case 'n': touches = atoi(optarg); break;
		case 'r': megabits = atoi(optarg); break;
		case 's': seed = strtoull(optarg, NULL, 0); break;
		case 'o': outdir = optarg; break;
		default: optind = argc;
		}
	}
	if (optind >= argc || gigabytes < 1 || nthreads < 1 || touches < 1 || megabits < 1 ||
	    (strcmp(kind, "auto") && strcmp(kind, "huge") && strcmp(kind, "copy") && strcmp(kind, "shmem"))) {
		fprintf(stderr, "usage: postcopy [-m memory] [-g GiB] [-t threads] [-n touches of each] [-r Mbit/s] [-s seed] [-o folder] file...\n"
			"memory: auto (1 GiB pages, 4 KiB faults if the kernel can), huge (1 GiB faults),\n"
			"        copy (4 KiB faults, UFFDIO_COPY instead of a second mapping), shmem\n");
		return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	size = gigabytes * GIB;

	listener = loopback(&addr, true);
	child = fork();
	if (child < 0)
		die("fork");
	if (!child) {
		int demand = accept(listener, NULL, NULL), stream = accept(listener, NULL, NULL);

		if (demand < 0 || stream < 0)
			die("accept");
		source(demand, stream, argv + optind, argc - optind);
	}
	demand_fd = loopback(&addr, false);
	stream_fd = loopback(&addr, false);
	ok = destination(kind);
	if (waitpid(child, &status, 0) != child || status)
		errno = 0, die("the source failed");
	return !ok;
}
