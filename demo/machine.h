/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The virtual machine that demo/migrate.c migrates: one for each process that includes
 * this. Its processors run a program that checks all of its memory over and over.
 *
 * Change it for what the machine is and does. What is for one architecture only is
 * in machine-x86_64.h and machine-arm64.h.
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
static int kvm, vm;
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

#if defined(__x86_64__)
#include "machine-x86_64.h"
#elif defined(__aarch64__)
#include "machine-arm64.h"
#endif

static void kick(int sig)
{
	(void)sig;		/* only to interrupt KVM_RUN */
}

static void make_machine(void)
{
	struct kvm_userspace_memory_region slot[2] = { { .slot = 0 }, { .slot = 1 } };
	int run_size;

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
		make_vcpu(v->fd);
	}
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
		if (v->run->exit_reason == EXIT_ERROR)
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

#endif
