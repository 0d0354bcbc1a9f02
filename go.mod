module swiftnbd

go 1.25

require libguestfs.org/nbdkit v0.0.0

replace libguestfs.org/nbdkit => ./plugin/nbdkit
