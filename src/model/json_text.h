// JSON as people write it: numbers in their shortest form (1e-06 and 0.25, where the library prints 1E-6
// and 2.5E-1).
#pragma once

#include <boost/json/value.hpp>
#include <string>

namespace jewel {

std::string json_line(const boost::json::value& value);    // one line, no newline at its end
std::string pretty_json(const boost::json::value& value);  // two spaces, one key a line; ends in a newline

}  // namespace jewel
