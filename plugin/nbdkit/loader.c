/* SPDX-License-Identifier: MIT
 *
 * The late start, and its callbacks.  It starts the Go runtime in a process
 * that we choose, and not when nbdkit opens the plugin.
 *
 *   process                        Go runs   what it does
 *   nbdkit until its last fork     no        records parameters
 *   child of plugin_init           yes       describes the plugin
 *   child of dump_plugin           yes       Load, Config*, DumpPlugin
 *   child of get_ready             yes       Load, Config*, ConfigComplete,
 *                                            GetReady, Preflight
 *   nbdkit from after_fork on      yes       Load, Config*, ConfigComplete,
 *                                            GetReady, AfterFork; serves
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "shim.h"
#include "_cgo_export.h"

typedef void (*init_fn) (int, char **, char **);

/* Set by goinit.ld.  Hidden and weak: both are NULL in a plugin that was linked
 * without it.  Such a plugin has the early start.
 */
extern init_fn nbdkitgo_init_start[]
  __attribute__ ((weak, visibility ("hidden")));
extern init_fn nbdkitgo_init_stop[]
  __attribute__ ((weak, visibility ("hidden")));

/* The one that the linker chose; nbdkitgo_weak_plugin_init is always entry.c's. */
extern struct nbdkit_plugin *plugin_init (void);

static int saved_argc;
static char **saved_argv, **saved_envp;
static bool go_runs;            /* in this process, by our doing */
static struct nbdkitgo_bytes carried; /* from the preflight child */

/* The two are the ends of one array.  The compiler must not assume that they
 * are different arrays.
 */
static init_fn *
opaque (init_fn *p)
{
  __asm__ ("" : "+r" (p));
  return p;
}

bool
nbdkitgo_is_late (void)
{
  return opaque (nbdkitgo_init_start) != opaque (nbdkitgo_init_stop);
}

void
nbdkitgo_runtime_start (void)
{
  if (go_runs)
    return;
  go_runs = true;
  init_fn *stop = opaque (nbdkitgo_init_stop);
  for (init_fn *f = opaque (nbdkitgo_init_start); f < stop; ++f)
    (*f) (saved_argc, saved_argv, saved_envp);
}

/* The Go runtime walks argv, envp and auxv in memory, so it needs the real
 * vector.  glibc gives it to constructors, also after dlopen.
 */
__attribute__ ((constructor)) static void
remember_args (int argc, char **argv, char **envp)
{
  saved_argc = argc;
  saved_argv = argv;
  saved_envp = envp;

  /* A plugin_init written in Go can only be called when Go runs.  If such a
   * plugin was linked with goinit.ld all the same, start Go now, as it would
   * have been without: better than a plugin_init that never returns.
   */
  if (nbdkitgo_is_late () && plugin_init != nbdkitgo_weak_plugin_init)
    nbdkitgo_runtime_start ();
}

static int
late_config (const char *key, const char *value)
{
  if (nbdkitgo_param_append (key, value) == -1) {
    nbdkit_error ("recording %s=: %s", key, strerror (errno));
    return -1;
  }
  return 0;
}

/* A password may be asked for on a terminal (password=-), unless nbdkit uses
 * standard input and output for the client (-s).
 */
static bool
on_terminal (void)
{
  return nbdkitgo_stdio_safe () == 1 && isatty (STDIN_FILENO);
}

static int
dump (int fd)
{
  nbdkitgo_runtime_start ();
  return nbdkitgoDumpPlugin (true);
}

static void
late_dump_plugin (void)
{
  struct nbdkitgo_bytes none = { NULL, 0 };
  int r;

  r = nbdkitgo_run_child ("--dump-plugin", dump, true, on_terminal (), &none);
  nbdkitgo_bytes_free (&none);
  if (r == -1)
    exit (EXIT_FAILURE);
}

static int
preflight (int fd)
{
  nbdkitgo_runtime_start ();
  return nbdkitgoPreflight (fd);
}

static int
late_get_ready (void)
{
  bool tty = on_terminal ();

  return nbdkitgo_run_child ("the check before serving", preflight,
                             tty, tty, &carried);
}

static int
late_after_fork (void)
{
  int r;

  nbdkitgo_runtime_start ();
  r = nbdkitgoStart (carried.ptr, carried.len);
  nbdkitgo_bytes_free (&carried);
  return r;
}

/* nbdkit also unloads plugins in processes that never served: after --help,
 * --version, --dump-plugin, or an error before the fork.
 */
static void
late_cleanup (void)
{
  if (go_runs)
    nbdkitgoCleanup ();
}

static void
late_unload (void)
{
  if (go_runs)
    nbdkitgoUnload ();
}

void
nbdkitgo_late_callbacks (struct nbdkit_plugin *plugin)
{
  plugin->config = late_config;
  plugin->dump_plugin = late_dump_plugin;
  plugin->get_ready = late_get_ready;
  plugin->after_fork = late_after_fork;
  plugin->cleanup = late_cleanup;
  plugin->unload = late_unload;
}
