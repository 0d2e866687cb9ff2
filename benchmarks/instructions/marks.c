/* What tells callgrind where a work begins and ends.
 *
 * The run is called from here, so that nothing but it stands between the two marks: of the interpreter's own loop and of
 * the call of this function not one instruction is counted. Compiled by `count.py` where it is needed, for valgrind's
 * headers are there only where valgrind is. Outside valgrind the marks do nothing.
 */

#include <Python.h>
#include <valgrind/callgrind.h>

/* Call `run` and have what it costs written under `name`; returns what it returned. The interpreter lock is held.
 *
 * What was counted since the last mark is written too, without a name, and thrown away: that sets all counters to zero,
 * those of calls among them, which callgrind's own request for it leaves as they are.
 */
PyObject *count_run(PyObject *run, const char *name)
{
    PyObject *result;
    CALLGRIND_DUMP_STATS_AT("");
    result = PyObject_CallNoArgs(run);
    CALLGRIND_DUMP_STATS_AT(name);
    return result;
}

/* From here on code is instrumented: what is imported before runs several times as fast. */
void count_begin(void)
{
    CALLGRIND_START_INSTRUMENTATION;
}
