/* SPDX-License-Identifier: MIT
 *
 * The entry that nbdkit looks up.  It is weak: a main package that exports a
 * plugin_init of its own (as upstream's examples do) replaces it at link time.
 * It has a file of its own: loader.c compares the two, and in one file the
 * compiler would assume that they are the same.
 */
#include <stdio.h>
#include <stdlib.h>

#include "shim.h"
#include "_cgo_export.h"

static int
describe (int fd)
{
  nbdkitgo_runtime_start ();
  return nbdkitgoDescribe (fd);
}

struct nbdkit_plugin *
nbdkitgo_own_plugin_init (void)
{
  struct nbdkitgo_bytes d = { NULL, 0 };
  struct nbdkit_plugin *plugin;

  if (!nbdkitgo_is_late ())
    return nbdkitgoRegistered ();

  if (nbdkitgo_run_child ("asking the plugin what it is", describe,
                          false, false, &d) == -1)
    exit (EXIT_FAILURE);        /* nbdkit would print a second line */
  plugin = nbdkitgo_make_plugin (d.ptr, d.len, true);
  nbdkitgo_bytes_free (&d);
  return plugin;
}

__attribute__ ((weak, visibility ("default")))
struct nbdkit_plugin *
plugin_init (void)
{
  return nbdkitgo_own_plugin_init ();
}

/* Another name for the function above.  It does not depend on the linker's
 * choice of plugin_init.
 */
extern struct nbdkit_plugin *nbdkitgo_weak_plugin_init (void)
  __attribute__ ((alias ("plugin_init")));
