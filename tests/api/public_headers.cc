// Compiled with include/ as the only include path: the headers need the standard library alone.
#include <jewel/engine.h>
#include <jewel/output.h>
#include <jewel/request.h>
#include <jewel/result.h>
