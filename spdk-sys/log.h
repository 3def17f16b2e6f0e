/* What SPDK has to say, line by line: Rust takes no lists of variable arguments. */
#ifndef POLLUX_SPDK_LOG_H
#define POLLUX_SPDK_LOG_H

/* Called from any thread; the text lives until it returns. */
typedef void (*pollux_spdk_log_line)(int level, const char *function, const char *text);

/* Has SPDK say everything to `line` from now on. */
void pollux_spdk_log_to(pollux_spdk_log_line line);

#endif
