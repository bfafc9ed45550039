/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The virtual machine that demo/migrate.c migrates: one for each process that includes
 * this. Its processors run a program that checks all of its memory over and over.
 *
 * Change it for what the machine is and does. What is for one architecture only is
 * between the lines that say so.
 */
#ifndef DEMO_MACHINE_H
#define DEMO_MACHINE_H

#include "common.h"
#include <linux/kvm.h>
#include <signal.h>
#include <stdatomic.h>

#define HOT	64		/* one page in HOT is rewritten */
#define KEY	0x5bd1e995a7c3f10dULL
#define VCPUS	8		/* at the most */

/*
 * Guest physical memory: a page for the code, some for its page tables, then what the
 * program keeps account in; from 1 GiB on the memory that all of this is about.
 */
#define CODE	0x1000UL
#define TABLES	0x2000UL
#define STATE	0x10000UL
#define GENS	0x11000UL		/* how often a hot page has been rewritten, a byte each */
#define MEMORY	GIB

static int gigabytes = 2, nvcpus = 2;
static size_t size, npages, low_size;	/* of the memory; of what is below 1 GiB */
static char *low, *mem;
static int kvm, stats;
static struct vcpu {
	int fd;
	struct kvm_run *run;
	pthread_t thread;
} vcpu[VCPUS];
static volatile struct state {		/* of each processor; the code knows the offsets */
	uint64_t visits, errors, page, found;
} *state;
static atomic_bool stopping;
static atomic_uint_fast64_t first_run;

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

static void get_registers(int fd, struct registers *r)
{
	if (ioctl(fd, KVM_GET_REGS, &r->regs) || ioctl(fd, KVM_GET_SREGS, &r->sregs))
		die("registers");
}

static void set_registers(int fd, struct registers *r)
{
	struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entry[128];
	} cpuid = { .head.nent = 128 };

	if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid) || ioctl(fd, KVM_SET_CPUID2, &cpuid) ||
	    ioctl(fd, KVM_SET_SREGS, &r->sregs) || ioctl(fd, KVM_SET_REGS, &r->regs))
		die("registers");
}

/* Long mode, everything mapped where it is. */
static void boot_registers(int id)
{
	const struct kvm_segment code = {
		.limit = ~0U, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1,
	}, data = {
		.limit = ~0U, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1,
	};
	struct registers r;

	get_registers(vcpu[id].fd, &r);
	r.sregs.cr0 = 0x80050033;	/* PG AM WP NE ET MP PE */
	r.sregs.cr3 = TABLES;
	r.sregs.cr4 = 0x20;		/* PAE */
	r.sregs.efer = 0x500;		/* LMA LME */
	r.sregs.cs = code;
	r.sregs.ds = r.sregs.es = r.sregs.fs = r.sregs.gs = r.sregs.ss = data;
	r.regs = (struct kvm_regs) {
		.rip = CODE, .rflags = 2, .rdi = MEMORY, .rsi = STATE + id * sizeof(*state),
		.r8 = GENS, .r9 = nvcpus, .r10 = id, .r11 = npages / nvcpus - 1, .r12 = KEY,
	};
	set_registers(vcpu[id].fd, &r);
}

/*
 * Pages of 2 MiB: the processor that QEMU 7.2 emulates stops with a triple fault if pages
 * of 1 GiB are used in a machine whose memory is mapped by smaller ones.
 */
static void boot_memory(void)
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

static void kick(int sig)
{
	(void)sig;		/* only to interrupt KVM_RUN */
}

static void make_machine(void)
{
	struct kvm_userspace_memory_region slot[2] = { { .slot = 0 }, { .slot = 1 } };
	int vm, run_size;

	low_size = (GENS + npages / HOT + PAGE - 1) & ~(PAGE - 1);
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		die("/dev/kvm");
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	low = mmap(NULL, low_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (vm < 0 || low == MAP_FAILED)
		die("a virtual machine");
	state = (void *)(low + STATE);
	slot[0].memory_size = low_size;
	slot[0].userspace_addr = (uintptr_t)low;
	slot[1].guest_phys_addr = MEMORY;
	slot[1].memory_size = size;
	slot[1].userspace_addr = (uintptr_t)mem;
	if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot[0]) ||
	    ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot[1]))
		die("memory of the virtual machine");
	run_size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	for (int i = 0; i < nvcpus; i++) {
		struct vcpu *v = &vcpu[i];

		v->fd = ioctl(vm, KVM_CREATE_VCPU, i);
		if (v->fd < 0)
			die("processor %d", i);
		v->run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
		if (v->run == MAP_FAILED)
			die("processor %d", i);
	}
	stats = ioctl(vm, KVM_GET_STATS_FD, 0);
	signal(SIGUSR1, kick);
}

/* What the program expects to find. */
static void initial_content(void)
{
	for (uint64_t p = 0; p < npages; p++) {
		uint64_t *word = (void *)(mem + p * PAGE);

		for (int w = 1; w < 511; w++)
			word[w] = (p << 9 | w) ^ KEY;
		word[0] = word[511] = p << 8 ^ KEY;
	}
}

static void boot_machine(void)
{
	initial_content();
	boot_memory();
	for (int i = 0; i < nvcpus; i++)
		boot_registers(i);
}

static void *run_vcpu(void *arg)
{
	struct vcpu *v = arg;
	int id = v - vcpu;
	uint64_t never = 0;

	atomic_compare_exchange_strong(&first_run, &never, now());
	while (!stopping) {
		if (ioctl(v->fd, KVM_RUN, 0)) {
			if (errno != EINTR && errno != EAGAIN)
				die("KVM_RUN of processor %d", id);
			continue;
		}
		errno = 0;
		if (v->run->exit_reason == KVM_EXIT_IO)
			die("processor %d found %#lx in page %lu", id, state[id].found, state[id].page);
		if (v->run->exit_reason != KVM_EXIT_INTR)
			die("processor %d stopped: reason %d", id, v->run->exit_reason);
	}
	return NULL;
}

static void start_machine(void)
{
	for (int i = 0; i < nvcpus; i++)
		start_thread(&vcpu[i].thread, run_vcpu, &vcpu[i]);
}

static void stop_machine(void)
{
	stopping = true;
	for (int i = 0; i < nvcpus; i++) {
		vcpu[i].run->immediate_exit = 1;	/* if the signal comes before KVM_RUN */
		pthread_kill(vcpu[i].thread, SIGUSR1);
		pthread_join(vcpu[i].thread, NULL);
	}
}

static uint64_t visits(void)
{
	uint64_t sum = 0;

	for (int i = 0; i < nvcpus; i++)
		sum += state[i].visits;
	return sum;
}

/* Visits per second are what the program in the machine gets done. */
static uint64_t rate_since(uint64_t t, uint64_t before)
{
	return (visits() - before) * 1e9 / (now() - t);
}

static uint64_t rate(void)
{
	uint64_t before = visits(), t = now();

	sleep(5);
	return rate_since(t, before);
}

/* One of KVM's statistics, or 0: not all architectures have all. */
static uint64_t statistic(const char *name)
{
	union {
		struct kvm_stats_desc desc;
		char room[256];
	} u;
	struct kvm_stats_header head;
	uint64_t value;

	if (pread(stats, &head, sizeof(head), 0) != sizeof(head))
		return 0;
	for (uint32_t i = 0; i < head.num_desc; i++) {
		size_t len = sizeof(u.desc) + head.name_size;

		if (len > sizeof(u) || pread(stats, &u, len, head.desc_offset + i * len) != (ssize_t)len)
			break;
		if (!strcmp(u.desc.name, name) &&
		    pread(stats, &value, sizeof(value), head.data_offset + u.desc.offset) == sizeof(value))
			return value;
	}
	return 0;
}

#endif
