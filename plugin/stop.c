/* SPDX-License-Identifier: MIT */

/* After a signal, nbdkit ends only when every client has left, and calls no
 * callback until then. The plugin would write back and unlock minutes or days
 * later. So we wrap nbdkit's own handlers: our handler writes the signal to a
 * pipe, and then calls nbdkit's handler.
 *
 * A handler may run on any thread and at any time: write(2) and nothing else.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "stop.h"

static const int signals[] = { SIGTERM, SIGINT, SIGQUIT, SIGHUP };
#define N (sizeof signals / sizeof signals[0])

static struct sigaction before[N];
static int stop_pipe = -1;

static void
noted (int sig, siginfo_t *info, void *context)
{
  int saved = errno;
  char c = (char) sig;

  /* If the pipe is full, enough signals are in it. */
  if (write (stop_pipe, &c, 1) == -1)
    ;
  errno = saved;

  for (size_t i = 0; i < N; ++i) {
    if (signals[i] != sig)
      continue;
    if (before[i].sa_flags & SA_SIGINFO)
      before[i].sa_sigaction (sig, info, context);
    else
      before[i].sa_handler (sig);
  }
}

/* swiftnbd_watch_stop wraps the handlers of the signals that have one. It
 * returns a descriptor from which one byte can be read for each signal, or -1
 * and errno.
 */
int
swiftnbd_watch_stop (void)
{
  int fds[2];

  if (pipe2 (fds, O_CLOEXEC | O_NONBLOCK) == -1)
    return -1;
  stop_pipe = fds[1];
  for (size_t i = 0; i < N; ++i) {
    struct sigaction wrap;

    if (sigaction (signals[i], NULL, &before[i]) == -1)
      return -1;
    if (!(before[i].sa_flags & SA_SIGINFO) &&
        (before[i].sa_handler == SIG_DFL || before[i].sa_handler == SIG_IGN))
      continue;                 /* such a signal does not end nbdkit normally */
    wrap = before[i];
    wrap.sa_sigaction = noted;
    wrap.sa_flags |= SA_SIGINFO | SA_ONSTACK; /* Go asks for its own stack */
    if (sigaction (signals[i], &wrap, NULL) == -1)
      return -1;
  }
  return fds[0];
}

/* A plugin cannot set nbdkit's exit status: nbdkit would end with 0 although
 * data could not be written. So the status is changed in a function that runs at
 * exit. It runs last, since it is registered when the plugin is loaded, before
 * all functions of nbdkit.
 *
 * Under --run the server is a child process. nbdkit waits for its end and does
 * not look at its status. So the two processes share the page with the flag.
 */
static volatile int *failed;

void
swiftnbd_fail (void)
{
  if (failed)
    *failed = 1;
}

static void
exit_status (int status, void *unused)
{
  if (status == EXIT_SUCCESS && *failed) {
    fflush (NULL);
    _exit (EXIT_FAILURE);
  }
}

__attribute__((constructor)) static void
register_exit_status (void)
{
  void *page = mmap (NULL, sizeof *failed, PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_ANONYMOUS, -1, 0);

  if (page == MAP_FAILED)
    return;                     /* the log still has the error */
  failed = page;
  on_exit (exit_status, NULL);
}
