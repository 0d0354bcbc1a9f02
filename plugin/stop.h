/* SPDX-License-Identifier: MIT */
#ifndef SWIFTNBD_STOP_H
#define SWIFTNBD_STOP_H
extern int swiftnbd_watch_stop (void);
extern int swiftnbd_failed; /* not 0: nbdkit ends with a status of 1 */
#endif
