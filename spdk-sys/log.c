#include <stdarg.h>
#include <stdio.h>

#include <spdk/log.h>

#include "log.h"

/* Longer lines are cut. */
#define LINE_BYTES_MAX 1024

static pollux_spdk_log_line g_line;

static void
format_line(int level, const char *file, const int number, const char *function, const char *format,
	    va_list arguments)
{
	char text[LINE_BYTES_MAX];

	(void)file;
	(void)number;
	vsnprintf(text, sizeof(text), format, arguments);
	g_line(level, function != NULL ? function : "", text);
}

void
pollux_spdk_log_to(pollux_spdk_log_line line)
{
	g_line = line;
	spdk_log_open(format_line);
}
