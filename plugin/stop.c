/* SPDX-License-Identifier: MIT */

/* nbdkit ends when it is told to by a signal, but not before every client has
 * left, and calls no callback until then: the plugin would write back and
 * unlock minutes or days later. So nbdkit's own handlers are wrapped: the
 * signal is noted in a pipe, and then handled as it would have been.
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

  /* A full pipe has been noted often enough. */
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

/* swiftnbd_watch_stop wraps the handlers of those signals that have one, and
 * returns the descriptor on which a byte comes for each, or -1 and errno.
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
      continue;                 /* not one that ends nbdkit in good order */
    wrap = before[i];
    wrap.sa_sigaction = noted;
    wrap.sa_flags |= SA_SIGINFO | SA_ONSTACK; /* Go asks for its own stack */
    if (sigaction (signals[i], &wrap, NULL) == -1)
      return -1;
  }
  return fds[0];
}

/* nbdkit gives a plugin no say in its exit status, and ends with 0 although
 * data could not be written.  So the status is changed on the way out, in the
 * last of the functions that run then: it is registered before all others of
 * nbdkit's, when the plugin is loaded.
 *
 * Under --run the server is a child, for whose end nbdkit waits, and whose
 * status it does not look at: so the two share the page that says it.
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
    return;                     /* the log says it all the same */
  failed = page;
  on_exit (exit_status, NULL);
}
