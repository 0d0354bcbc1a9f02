/* SPDX-License-Identifier: MIT
 *
 * What is known before Go runs: the directory in which nbdkit was started, and
 * the parameters in their order.  Both survive nbdkit's forks.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "shim.h"

static char *cwd;
static struct nbdkitgo_param *params;
static size_t nparams;

/* The dynamic loader runs this when nbdkit opens the plugin.  The directory has
 * not changed yet.
 */
__attribute__ ((constructor)) static void
remember_cwd (void)
{
  cwd = get_current_dir_name ();
}

/* Returns NULL if the directory was gone or unreadable. */
const char *
nbdkitgo_cwd (void)
{
  return cwd;
}

/* Filters may pass parameters whose strings do not last, so copy them. */
int
nbdkitgo_param_append (const char *key, const char *value)
{
  struct nbdkitgo_param *p;

  p = realloc (params, (nparams + 1) * sizeof *p);
  if (p == NULL)
    return -1;
  params = p;
  p = &params[nparams];
  p->key = strdup (key);
  p->value = strdup (value);
  if (p->key == NULL || p->value == NULL) {
    free (p->key);
    free (p->value);
    return -1;
  }
  nparams++;
  return 0;
}

size_t
nbdkitgo_param_count (void)
{
  return nparams;
}

const struct nbdkitgo_param *
nbdkitgo_param_at (size_t i)
{
  return &params[i];
}
