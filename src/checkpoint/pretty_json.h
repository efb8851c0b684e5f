// JSON as people write it into config files: two spaces, one key a line, numbers in their shortest form
// (1e-06, not 1E-6).
#pragma once

#include <boost/json/value.hpp>
#include <string>

namespace jewel {

std::string pretty_json(const boost::json::value& value);

}  // namespace jewel
