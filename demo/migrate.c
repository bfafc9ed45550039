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
 * by 4 KiB; on others it is the same program, but a page is 1 GiB.
 *
 * Change it for what a migration does. What is for one architecture only is between
 * the lines that say so.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/kvm.h>
#include <linux/memfd.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_SPLIT
#define MADV_SPLIT 26
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif
#ifndef UFFD_FEATURE_WP_HUGETLBFS_SHMEM
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM (1 << 12)
#endif
#ifndef PAGEMAP_SCAN			/* from linux/fs.h of 6.7 */
#define PAGEMAP_SCAN _IOWR('f', 16, struct pm_scan_arg)
#define PAGE_IS_WRITTEN (1 << 1)
#define PM_SCAN_WP_MATCHING (1 << 0)
#define PM_SCAN_CHECK_WPASYNC (1 << 1)
struct page_region {
	uint64_t start, end, categories;
};
struct pm_scan_arg {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#endif

#define PAGE	4096UL
#define GIB	(1UL << 30)
#define CHUNK	(16 * PAGE)
#define NSEC	1000000000ULL
#define HOT	64		/* one page in HOT is rewritten */
#define KEY	0x5bd1e995a7c3f10dULL
#define ROUNDS	4		/* of pre-copy at the most */

static int gigabytes = 2, nvcpus = 2, megabits = 250;
static size_t size, npages;
static FILE *out;

static void die(const char *fmt, ...)
{
	int err = errno;
	va_list ap;

	va_start(ap, fmt);
	fprintf(stderr, "migrate: ");
	vfprintf(stderr, fmt, ap);
	fprintf(stderr, err ? ": %s\n" : "\n", strerror(err));
	va_end(ap);
	_exit(1);
}

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * NSEC + t.tv_nsec;
}

/* --- the machine --- */

/*
 * Guest physical memory: a page for the code, some for its page tables, then what the
 * program keeps account in; from 1 GiB on the memory that all of this is about.
 */
#define CODE	0x1000UL
#define TABLES	0x2000UL
#define STATE	0x10000UL
#define GENS	0x11000UL		/* how often a hot page has been rewritten, a byte each */
#define MEMORY	GIB

struct state {				/* of one processor; the code knows the offsets */
	uint64_t visits, errors, page, found;
};

struct machine {
	int vm, stats;
	int vcpu[8];
	struct kvm_run *run[8];
	pthread_t thread[8];
	char *low, *mem;
	size_t low_size;
	atomic_bool stop;
	atomic_int running;
	atomic_uint_fast64_t first_run;
};

static struct state *states(struct machine *m)
{
	return (void *)(m->low + STATE);
}

static uint64_t visits(struct machine *m)
{
	uint64_t sum = 0;

	for (int i = 0; i < nvcpus; i++)
		sum += ((volatile struct state *)states(m))[i].visits;
	return sum;
}

/* --- x86-64 --- */

/*
 * The program. rdi: the memory, rsi: its state, r8: GENS, r9: number of processors,
 * r10: which of them it is, r11: pages of each - 1, r12: KEY; rax: where it has got to.
 * Word 0 and word 511 of page p are (p << 8 | generation) ^ KEY, all others w are
 * (p << 9 | w) ^ KEY.
 */
asm(".pushsection .rodata\n"
    "guest_code:\n"
    "1:	imul $1664525, %rax, %rax\n"		/* visits all in one period */
    "	add $1013904223, %rax\n"
    "	and %r11, %rax\n"
    "	mov %rax, %rbx\n"
    "	imul %r9, %rbx\n"
    "	add %r10, %rbx\n"			/* rbx: the page's number */
    "	mov %rbx, %rcx\n"
    "	shl $12, %rcx\n"
    "	add %rdi, %rcx\n"			/* rcx: its address */
    "	xor %edx, %edx\n"
    "	mov %rbx, %r13\n"
    "	shr $6, %r13\n"				/* HOT is 64 */
    "	test $63, %bl\n"
    "	jnz 2f\n"
    "	movzbl (%r8, %r13), %edx\n"
    "2:	mov %rbx, %rbp\n"
    "	shl $8, %rbp\n"
    "	or %rdx, %rbp\n"
    "	xor %r12, %rbp\n"			/* rbp: what words 0 and 511 should be */
    "	mov (%rcx), %r14\n"
    "	cmp %rbp, %r14\n"
    "	jne 9f\n"
    "	mov 4088(%rcx), %r14\n"
    "	cmp %rbp, %r14\n"
    "	jne 9f\n"
    "	mov %rax, %r15\n"			/* and one of the others */
    "	shr $3, %r15\n"
    "	and $255, %r15\n"
    "	inc %r15\n"
    "	mov %rbx, %rbp\n"
    "	shl $9, %rbp\n"
    "	or %r15, %rbp\n"
    "	xor %r12, %rbp\n"
    "	mov (%rcx, %r15, 8), %r14\n"
    "	cmp %rbp, %r14\n"
    "	jne 9f\n"
    "	test $63, %bl\n"
    "	jnz 3f\n"
    "	inc %dl\n"
    "	mov %dl, (%r8, %r13)\n"
    "	mov %rbx, %rbp\n"
    "	shl $8, %rbp\n"
    "	or %rdx, %rbp\n"
    "	xor %r12, %rbp\n"
    "	mov %rbp, (%rcx)\n"
    "	mov %rbp, 4088(%rcx)\n"
    "3:	incq (%rsi)\n"
    "	jmp 1b\n"
    "9:	incq 8(%rsi)\n"
    "	mov %rbx, 16(%rsi)\n"
    "	mov %r14, 24(%rsi)\n"
    "	out %al, $16\n"
    "	jmp 3b\n"
    "guest_code_end:\n"
    ".popsection\n");
extern const char guest_code[], guest_code_end[];

struct registers {
	struct kvm_regs regs;
	struct kvm_sregs sregs;
};

static void get_registers(int vcpu, struct registers *r)
{
	if (ioctl(vcpu, KVM_GET_REGS, &r->regs) || ioctl(vcpu, KVM_GET_SREGS, &r->sregs))
		die("registers");
}

static void set_registers(int kvm, int vcpu, struct registers *r)
{
	struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entry[128];
	} cpuid = { .head.nent = 128 };

	if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid) || ioctl(vcpu, KVM_SET_CPUID2, &cpuid) ||
	    ioctl(vcpu, KVM_SET_SREGS, &r->sregs) || ioctl(vcpu, KVM_SET_REGS, &r->regs))
		die("registers");
}

/* Long mode, everything mapped where it is. */
static void boot_registers(int vcpu, int id, struct registers *r)
{
	const struct kvm_segment code = {
		.limit = ~0U, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1,
	}, data = {
		.limit = ~0U, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1,
	};

	get_registers(vcpu, r);
	r->sregs.cr0 = 0x80050033;	/* PG AM WP NE ET MP PE */
	r->sregs.cr3 = TABLES;
	r->sregs.cr4 = 0x20;		/* PAE */
	r->sregs.efer = 0x500;		/* LMA LME */
	r->sregs.cs = code;
	r->sregs.ds = r->sregs.es = r->sregs.fs = r->sregs.gs = r->sregs.ss = data;
	r->regs = (struct kvm_regs) {
		.rip = CODE, .rflags = 2, .rdi = MEMORY, .rsi = STATE + id * sizeof(struct state),
		.r8 = GENS, .r9 = nvcpus, .r10 = id, .r11 = npages / nvcpus - 1, .r12 = KEY,
	};
}

/*
 * Pages of 2 MiB: the processor that QEMU 7.2 emulates stops with a triple fault if pages
 * of 1 GiB are used in a machine whose memory is mapped by smaller ones.
 */
static void boot_memory(char *low)
{
	uint64_t *top = (void *)(low + TABLES), *next = top + 512, *last = next + 512;

	memcpy(low + CODE, guest_code, guest_code_end - guest_code);
	top[0] = (TABLES + PAGE) | 3;
	for (uint64_t i = 0; i <= (uint64_t)gigabytes; i++)
		next[i] = (TABLES + (2 + i) * PAGE) | 3;
	for (uint64_t i = 0; i < (gigabytes + 1) * 512UL; i++)
		last[i] = i << 21 | 0xe3;	/* present, writable, used, 2 MiB */
}

/* --- end of x86-64 --- */

static void initial_content(char *mem)
{
	for (uint64_t p = 0; p < npages; p++) {
		uint64_t *word = (void *)(mem + p * PAGE);

		for (int w = 1; w < 511; w++)
			word[w] = (p << 9 | w) ^ KEY;
		word[0] = word[511] = p << 8 ^ KEY;
	}
}

static void kick(int sig)
{
	(void)sig;
}

static void *run_vcpu(void *arg)
{
	struct machine *m = ((void **)arg)[0];
	int id = (intptr_t)((void **)arg)[1];

	m->running++;
	while (!m->stop) {
		uint64_t zero = 0;

		atomic_compare_exchange_strong(&m->first_run, &zero, now());
		if (ioctl(m->vcpu[id], KVM_RUN, 0)) {
			if (errno != EINTR && errno != EAGAIN)
				die("KVM_RUN of processor %d", id);
			continue;
		}
		errno = 0;
		if (m->run[id]->exit_reason == KVM_EXIT_IO)
			die("processor %d found %#llx in page %llu", id,
			    (long long)states(m)[id].found, (long long)states(m)[id].page);
		if (m->run[id]->exit_reason != KVM_EXIT_INTR)
			die("processor %d stopped: reason %d", id, m->run[id]->exit_reason);
	}
	m->running--;
	return NULL;
}

static void start_machine(struct machine *m)
{
	static void *arg[8][2];

	m->stop = false;
	for (int i = 0; i < nvcpus; i++) {
		m->run[i]->immediate_exit = 0;
		arg[i][0] = m;
		arg[i][1] = (void *)(intptr_t)i;
		if (pthread_create(&m->thread[i], NULL, run_vcpu, arg[i]))
			die("pthread_create");
	}
}

static void stop_machine(struct machine *m)
{
	m->stop = true;
	for (int i = 0; i < nvcpus; i++) {
		m->run[i]->immediate_exit = 1;
		pthread_kill(m->thread[i], SIGUSR1);
		pthread_join(m->thread[i], NULL);
	}
}

static int make_machine(struct machine *m, char *mem)
{
	struct kvm_userspace_memory_region low = { .slot = 0 }, high = { .slot = 1 };
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	long run_size;

	if (kvm < 0)
		die("/dev/kvm");
	m->mem = mem;
	m->low_size = (GENS + npages / HOT + PAGE - 1) & ~(PAGE - 1);
	m->low = mmap(NULL, m->low_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	m->vm = ioctl(kvm, KVM_CREATE_VM, 0);
	if (m->low == MAP_FAILED || m->vm < 0)
		die("a virtual machine");
	low.memory_size = m->low_size;
	low.userspace_addr = (uintptr_t)m->low;
	high.guest_phys_addr = MEMORY;
	high.memory_size = size;
	high.userspace_addr = (uintptr_t)mem;
	if (ioctl(m->vm, KVM_SET_USER_MEMORY_REGION, &low) ||
	    ioctl(m->vm, KVM_SET_USER_MEMORY_REGION, &high))
		die("memory of the virtual machine");
	run_size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	for (int i = 0; i < nvcpus; i++) {
		m->vcpu[i] = ioctl(m->vm, KVM_CREATE_VCPU, i);
		if (m->vcpu[i] < 0)
			die("processor %d", i);
		m->run[i] = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, m->vcpu[i], 0);
		if (m->run[i] == MAP_FAILED)
			die("processor %d", i);
	}
	m->stats = ioctl(m->vm, KVM_GET_STATS_FD, 0);
	signal(SIGUSR1, kick);
	return kvm;
}

/* How KVM maps the memory: "pages_4k" and so on, which not all architectures have. */
static uint64_t stage2(struct machine *m, const char *name)
{
	struct kvm_stats_header head;
	uint64_t value = 0;
	char *desc;

	if (m->stats < 0 || pread(m->stats, &head, sizeof(head), 0) != sizeof(head))
		return 0;
	desc = malloc(sizeof(struct kvm_stats_desc) + head.name_size);
	for (uint32_t i = 0; i < head.num_desc; i++) {
		size_t len = sizeof(struct kvm_stats_desc) + head.name_size;
		struct kvm_stats_desc *d = (void *)desc;

		if (pread(m->stats, desc, len, head.desc_offset + i * len) != (ssize_t)len)
			break;
		if (!strcmp(d->name, name))
			pread(m->stats, &value, 8, head.data_offset + d->offset);
	}
	free(desc);
	return value;
}

static void report_stage2(struct machine *m, const char *when)
{
	fprintf(out, "%s\t%llu, %llu, %llu\n", when, (long long)stage2(m, "pages_1g"),
		(long long)stage2(m, "pages_2m"), (long long)stage2(m, "pages_4k"));
}

/* The rate of visits, which is what the program in the machine gets done. */
static uint64_t rate(struct machine *m, double seconds)
{
	uint64_t before = visits(m), t = now();

	usleep(seconds * 1e6);
	return (visits(m) - before) * NSEC / (now() - t);
}

/* --- the connection --- */

enum what { PRECOPY, SWITCH, MISSING, POSTCOPY, GET, END };
struct frame {
	uint64_t offset, length;
	uint32_t what;
};

static void send_all(int fd, const void *buf, size_t len)
{
	while (len) {
		ssize_t n = send(fd, buf, len, MSG_NOSIGNAL);

		if (n < 0 && errno != EINTR)
			die("send");
		if (n > 0)
			buf = (const char *)buf + n, len -= n;
	}
}

static bool receive(int fd, void *buf, size_t len)
{
	ssize_t n = 0;

	for (; len; buf = (char *)buf + n, len -= n) {
		do
			n = recv(fd, buf, len, MSG_WAITALL);
		while (n < 0 && errno == EINTR);
		if (n < 0)
			die("recv");
		if (!n)
			return false;
	}
	return true;
}

/* When what has been sent until now is through the link. */
static uint64_t due;

static void send_paced(int fd, uint32_t what, uint64_t offset, const void *data, uint64_t length)
{
	struct frame f = { offset, length, what };
	uint64_t t = now();

	if (due > t) {
		struct timespec ts = { (due - t) / NSEC, (due - t) % NSEC };

		nanosleep(&ts, NULL);
		t = now();
	}
	send_all(fd, &f, sizeof(f));
	if (data)
		send_all(fd, data, length);
	if (due + NSEC / 10 < t)	/* up to 100 ms can be made up for */
		due = t - NSEC / 10;
	due += (sizeof(f) + (data ? length : 0)) * 8 * 1000 / megabits;
}

/* --- userfaultfd and dirty pages --- */

static bool split;			/* does this kernel have MADV_SPLIT? */
static size_t step;			/* the smallest page there is then */

static char *map_memory(int fd)
{
	char *mem = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (mem == MAP_FAILED)
		die("a mapping of %d GiB", gigabytes);
	return mem;
}

static int new_memory(void)
{
	int fd = memfd_create("guest", MFD_HUGETLB | MFD_HUGE_1GB);

	if (fd < 0 || ftruncate(fd, size) || fallocate(fd, 0, 0, size))
		die("%d pages of 1 GiB", gigabytes);
	return fd;
}

static int open_uffd(char *mem, uint64_t features, uint64_t mode)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	struct uffdio_register reg = { .range = { (uintptr_t)mem, size }, .mode = mode };
	int fd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api))
		die("userfaultfd");
	if (split && madvise(mem, size, MADV_SPLIT))
		die("MADV_SPLIT");
	if (ioctl(fd, UFFDIO_REGISTER, &reg))
		die("UFFDIO_REGISTER");
	return fd;
}

/* Adds what has been written to since the last time to @dirty; returns how many pages. */
static size_t scan(int pagemap, char *mem, bool *dirty)
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
		for (int i = 0; i < regions; i++)
			for (at = region[i].start; at < region[i].end; at += PAGE, n++)
				dirty[(at - (uintptr_t)mem) / PAGE] = true;
		at = arg.walk_end;
	}
	return n;
}

/* The next run of pages that are @wanted, within an aligned chunk; 0 pages at the end. */
static size_t next_run(const bool *wanted, size_t *first, size_t end)
{
	size_t p, stop;

	while (*first < end && !wanted[*first])
		++*first;
	stop = *first - *first % (CHUNK / PAGE) + CHUNK / PAGE;
	for (p = *first; p < stop && p < end && wanted[p]; p++)
		;
	return p - *first;
}

/* --- the source --- */

static void source(int fd)
{
	struct machine m = { .stop = true };
	bool *dirty = malloc(npages);
	struct registers regs;
	uint64_t t, stopped, before, during;
	int kvm, uffd, pagemap, rounds = 1;
	size_t n, run, cursor = 0, left;
	struct frame f;

	kvm = make_machine(&m, map_memory(new_memory()));
	initial_content(m.mem);
	boot_memory(m.low);
	for (int i = 0; i < nvcpus; i++) {
		boot_registers(m.vcpu[i], i, &regs);
		set_registers(kvm, m.vcpu[i], &regs);
	}
	start_machine(&m);
	sleep(2);
	before = rate(&m, 5);
	fprintf(out, "visits/s before\t%llu\n", (long long)before);
	fprintf(out, "stage 2: 1 GiB, 2 MiB, 4 KiB pages\t\n");
	report_stage2(&m, "  before");

	/* Pre-copy. */
	t = now();
	uffd = open_uffd(m.mem, UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_ASYNC |
			 UFFD_FEATURE_PAGEFAULT_FLAG_WP, UFFDIO_REGISTER_MODE_WP);
	pagemap = open("/proc/self/pagemap", O_RDONLY);
	if (ioctl(uffd, UFFDIO_WRITEPROTECT, &(struct uffdio_writeprotect) {
			.range = { (uintptr_t)m.mem, size }, .mode = UFFDIO_WRITEPROTECT_MODE_WP }))
		die("UFFDIO_WRITEPROTECT");
	before = visits(&m);
	memset(dirty, true, npages);
	for (n = npages; ; rounds++) {
		for (size_t p = 0; (run = next_run(dirty, &p, npages)); p += run) {
			memset(dirty + p, false, run);
			send_paced(fd, PRECOPY, p * PAGE, m.mem + p * PAGE, run * PAGE);
		}
		printf("pre-copy: round %d sent %zu pages\n", rounds, n);
		left = scan(pagemap, m.mem, dirty);
		if (left * 2 > n || rounds == ROUNDS || left < 256)
			break;
		n = left;
	}
	during = (visits(&m) - before) * NSEC / (now() - t);
	report_stage2(&m, "  during pre-copy");

	/* Switch over. */
	stopped = now();
	stop_machine(&m);
	scan(pagemap, m.mem, dirty);
	send_paced(fd, SWITCH, stopped, NULL, 0);
	for (int i = 0; i < nvcpus; i++) {
		get_registers(m.vcpu[i], &regs);
		send_all(fd, &regs, sizeof(regs));
	}
	send_paced(fd, MISSING, 0, m.low, m.low_size);
	send_all(fd, dirty, npages);		/* 1 bit each, in a real VMM */
	due += npages / megabits * 1000;
	for (size_t p = left = 0; p < npages; p++)
		left += dirty[p];
	printf("switched over with %zu pages missing\n", left);
	fprintf(out, "visits/s during pre-copy\t%llu\n", (long long)during);
	fprintf(out, "pre-copy took\t%.2f s, %d rounds\n", (stopped - t) / 1e9, rounds);
	fprintf(out, "4 KiB pages missing at the switch\t%zu of %zu\n", left, npages);
	fflush(out);

	/* Post-copy. */
	while (left) {
		struct pollfd p = { fd, POLLIN, 0 };
		bool wanted = poll(&p, 1, 0) == 1;
		size_t first = cursor, end = npages;

		if (wanted) {
			if (!receive(fd, &f, sizeof(f)))
				die("the destination went away");
			first = f.offset / PAGE;
			end = (f.offset + f.length) / PAGE;
		}
		do {
			run = next_run(dirty, &first, end);
			if (!run)
				break;
			memset(dirty + first, false, run);
			send_paced(fd, POSTCOPY, first * PAGE, m.mem + first * PAGE, run * PAGE);
			left -= run;
			first += run;
		} while (wanted);
		if (!wanted)
			cursor = first;
	}
	send_paced(fd, END, 0, NULL, 0);
	while (receive(fd, &f, sizeof(f)))	/* late requests */
		;
}

/* --- the destination --- */

static struct machine dest = { .stop = true };
static char *alias;
static int conn, dest_uffd;
static _Atomic bool *missing;
static uint64_t *asked;			/* when, by step */
static uint64_t *waits;
static atomic_size_t nwaits;
static atomic_size_t *left_in;		/* pages missing, by step */
static pthread_mutex_t ask_lock = PTHREAD_MUTEX_INITIALIZER;

static void map(uint64_t offset, uint64_t len)
{
	while (len) {
		struct uffdio_continue c = { .range = { (uintptr_t)dest.mem + offset, len } };

		if (!ioctl(dest_uffd, UFFDIO_CONTINUE, &c))
			return;
		if (errno == EEXIST) {		/* of one page; go on after it */
			struct uffdio_range r = { (uintptr_t)dest.mem + offset, step };

			ioctl(dest_uffd, UFFDIO_WAKE, &r);
			offset += step, len -= step;
		} else if (errno != EAGAIN) {
			die("UFFDIO_CONTINUE of %#lx at %#lx", (long)len, (long)offset);
		} else if (c.mapped > 0) {
			offset += c.mapped, len -= c.mapped;
		}
	}
}

static void *handle_faults(void *arg)
{
	struct pollfd p = { dest_uffd, POLLIN, 0 };
	struct uffd_msg msg;

	(void)arg;
	while (poll(&p, 1, -1) >= 0) {
		struct frame f = { .length = step, .what = GET };
		uint64_t t = now(), i;

		if (read(dest_uffd, &msg, sizeof(msg)) != sizeof(msg))
			continue;
		f.offset = (msg.arg.pagefault.address - (uintptr_t)dest.mem) & ~(step - 1);
		i = f.offset / step;
		pthread_mutex_lock(&ask_lock);
		if (!left_in[i]) {
			pthread_mutex_unlock(&ask_lock);
			map(f.offset, step);
			continue;
		}
		if (!asked[i]) {
			asked[i] = t;
			send_all(conn, &f, sizeof(f));
		}
		pthread_mutex_unlock(&ask_lock);
	}
	return NULL;
}

/* Map, without having been asked, what came with pre-copy and was not written to. */
static void *map_rest(void *arg)
{
	(void)arg;
	for (size_t i = 0, n; i < size / step; i += n + !n) {
		/* Up to 2 MiB at a time, so that tables fill at once */
		for (n = 0; i + n < size / step && n < 512 && !left_in[i + n]; n++)
			;
		if (n)
			map(i * step, n * step);
	}
	return NULL;
}

static void arrive(uint64_t offset, uint64_t len)
{
	for (size_t p = offset / PAGE; p < (offset + len) / PAGE; p++) {
		size_t i = p * PAGE / step;
		uint64_t t = 0;

		pthread_mutex_lock(&ask_lock);
		missing[p] = false;
		if (--left_in[i]) {
			pthread_mutex_unlock(&ask_lock);
			continue;
		}
		t = asked[i];
		pthread_mutex_unlock(&ask_lock);
		map(i * step, step);
		if (t)
			waits[nwaits++] = now() - t;
	}
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(uint64_t *)a, y = *(uint64_t *)b;

	return x < y ? -1 : x > y;
}

static void destination(int fd)
{
	uint64_t stopped = 0, t, done, all = 0;
	pthread_t faults, rest;
	struct registers regs;
	struct frame f;
	int memfd = new_memory(), kvm;

	conn = fd;
	alias = map_memory(memfd);
	kvm = make_machine(&dest, map_memory(memfd));
	dest_uffd = open_uffd(dest.mem, UFFD_FEATURE_MINOR_HUGETLBFS, UFFDIO_REGISTER_MODE_MINOR);
	missing = calloc(npages, sizeof(*missing));
	left_in = calloc(size / step, sizeof(*left_in));
	asked = calloc(size / step, sizeof(*asked));
	waits = calloc(size / step, sizeof(*waits));

	while (receive(fd, &f, sizeof(f)) && f.what != SWITCH)
		if (!receive(fd, alias + f.offset, f.length))
			die("no data");
	stopped = f.offset;
	for (int i = 0; i < nvcpus; i++) {
		if (!receive(fd, &regs, sizeof(regs)))
			die("no registers");
		set_registers(kvm, dest.vcpu[i], &regs);
	}
	if (!receive(fd, &f, sizeof(f)) || !receive(fd, dest.low, f.length) ||
	    !receive(fd, (void *)missing, npages))
		die("the source went away");
	for (size_t p = 0; p < npages; p++)
		left_in[p * PAGE / step] += missing[p];
	pthread_create(&faults, NULL, handle_faults, NULL);
	start_machine(&dest);
	pthread_create(&rest, NULL, map_rest, NULL);
	while (receive(fd, &f, sizeof(f)) && f.what != END) {
		if (!receive(fd, alias + f.offset, f.length))
			die("no data");
		arrive(f.offset, f.length);
	}
	t = now();
	pthread_join(rest, NULL);
	fprintf(out, "the machine stood still for\t%.1f ms\n", (dest.first_run - stopped) / 1e6);
	fprintf(out, "post-copy took\t%.2f s\n", (t - stopped) / 1e9);
	fprintf(out, "processors' waits for the source\t%zu\n", (size_t)nwaits);
	qsort(waits, nwaits, sizeof(*waits), by_value);
	for (size_t i = 0; i < nwaits; i++)
		all += waits[i];
	if (nwaits) {
		fprintf(out, "  median\t%.2f ms\n", waits[nwaits / 2] / 1e6);
		fprintf(out, "  worst\t%.2f ms\n", waits[nwaits - 1] / 1e6);
		fprintf(out, "  together\t%.2f s\n", all / 1e9);
	}
	sleep(2);
	fprintf(out, "after the migration\t\n");
	report_stage2(&dest, "  stage 2: 1 GiB, 2 MiB, 4 KiB pages");
	if (split) {
		t = now();
		for (int i = 0; i < gigabytes; i++)
			while (madvise(dest.mem + i * GIB, GIB, MADV_COLLAPSE))
				if (errno != EAGAIN && errno != EBUSY)
					die("MADV_COLLAPSE");
		fprintf(out, "MADV_COLLAPSE took\t%.1f ms\n", (now() - t) / 1e6);
	}
	ioctl(dest_uffd, UFFDIO_UNREGISTER, &(struct uffdio_range){ (uintptr_t)dest.mem, size });
	sleep(2);
	report_stage2(&dest, "  stage 2 at the end");
	fprintf(out, "visits/s after\t%llu\n", (long long)rate(&dest, 5));

	/* Every page is visited and checked once more. */
	for (int i = 0; i < nvcpus; i++) {
		volatile struct state *s = &states(&dest)[i];

		for (done = s->visits; s->visits < done + npages / nvcpus; )
			usleep(10000);
	}
	stop_machine(&dest);
	for (int i = 0; i < nvcpus; i++)
		if (states(&dest)[i].errors)
			die("processor %d found errors", i);
	fprintf(out, "every page checked by the machine itself\tgood\n");
}

int main(int argc, char **argv)
{
	struct utsname name;
	const char *file = "/dev/stdout";
	int opt, pair[2], status;
	pid_t pid;

	while ((opt = getopt(argc, argv, "g:c:r:o:")) != -1) {
		switch (opt) {
		case 'g': gigabytes = atoi(optarg); break;
		case 'c': nvcpus = atoi(optarg); break;
		case 'r': megabits = atoi(optarg); break;
		case 'o': file = optarg; break;
		default: goto usage;
		}
	}
	/* Powers of 2, as the machine's program visits all pages in one period only then. */
	if (optind < argc || gigabytes < 1 || gigabytes > 8 ||
	    gigabytes & (gigabytes - 1) || nvcpus < 1 ||
	    nvcpus > 8 || nvcpus & (nvcpus - 1) || megabits < 1) {
usage:
		fprintf(stderr, "usage: migrate [-g GiB] [-c processors] [-r Mbit/s] [-o file]\n"
			"GiB and processors are powers of 2; twice as many pages of 1 GiB are needed\n");
		return 2;
	}
	size = gigabytes * GIB;
	npages = size / PAGE;
	split = !madvise(NULL, 0, MADV_SPLIT);
	step = split ? PAGE : GIB;
	out = fopen(file, "a");
	if (!out)
		die("%s", file);
	setvbuf(stdout, NULL, _IOLBF, 0);
	uname(&name);
	fprintf(out, "kernel\t%s\nmemory\t%d pages of 1 GiB\nprocessors\t%d\n", name.release,
		gigabytes, nvcpus);
	fflush(out);

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
		die("socketpair");
	pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(pair[0]);
		destination(pair[1]);
		fflush(out);
		_exit(0);
	}
	close(pair[1]);
	source(pair[0]);
	if (waitpid(pid, &status, 0) != pid || status)
		die("the destination ended with status %#x", status);
	return 0;
}
