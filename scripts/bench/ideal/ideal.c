// SPDX-License-Identifier: MIT
//
// A disk in memory whose flush takes the time of one PUT, for "nbdkit cc": what a
// database could have at the most if nothing but its flushes' PUTs took time.

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

static int64_t size;
static unsigned put_ns;
static char *disk;
static atomic_bool dirty;

static int ideal_config(const char *key, const char *value)
{
  if (strcmp(key, "size") == 0)
    return (size = nbdkit_parse_size(value)) == -1 ? -1 : 0;
  if (strcmp(key, "put") == 0)
    return nbdkit_parse_unsigned("put", value, &put_ns);
  nbdkit_error("unknown parameter '%s'", key);
  return -1;
}

static int ideal_get_ready(void)
{
  disk = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (disk == MAP_FAILED) {
    nbdkit_error("mmap: %m");
    return -1;
  }
  return 0;
}

static void *ideal_open(int readonly) { return NBDKIT_HANDLE_NOT_NEEDED; }
static int64_t ideal_get_size(void *h) { return size; }
static int ideal_can_fua(void *h) { return NBDKIT_FUA_NATIVE; }
static int ideal_can_multi_conn(void *h) { return 1; }

static int ideal_flush(void *h, uint32_t flags)
{
  if (!atomic_exchange(&dirty, false))
    return 0;
  return nbdkit_nanosleep(put_ns / 1000000000, put_ns % 1000000000);
}

static int ideal_pread(void *h, void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
  memcpy(buf, disk + offset, count);
  return 0;
}

static int ideal_pwrite(void *h, const void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
  memcpy(disk + offset, buf, count);
  atomic_store(&dirty, true);
  return flags & NBDKIT_FLAG_FUA ? ideal_flush(h, 0) : 0;
}

static int ideal_zero(void *h, uint32_t count, uint64_t offset, uint32_t flags)
{
  memset(disk + offset, 0, count);
  atomic_store(&dirty, true);
  return flags & NBDKIT_FLAG_FUA ? ideal_flush(h, 0) : 0;
}

static int ideal_trim(void *h, uint32_t count, uint64_t offset, uint32_t flags)
{
  return ideal_zero(h, count, offset, flags);
}

static struct nbdkit_plugin plugin = {
  .name = "ideal",
  .config = ideal_config,
  .get_ready = ideal_get_ready,
  .open = ideal_open,
  .get_size = ideal_get_size,
  .can_fua = ideal_can_fua,
  .can_multi_conn = ideal_can_multi_conn,
  .flush = ideal_flush,
  .pread = ideal_pread,
  .pwrite = ideal_pwrite,
  .zero = ideal_zero,
  .trim = ideal_trim,
};

NBDKIT_REGISTER_PLUGIN(plugin)
