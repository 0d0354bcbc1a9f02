/* SPDX-License-Identifier: MIT */
#ifndef SWIFTNBD_STOP_H
#define SWIFTNBD_STOP_H
extern int swiftnbd_watch_stop (void);
extern void swiftnbd_fail (void); /* nbdkit ends with a status of 1 */
#endif
