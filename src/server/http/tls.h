// The TLS side of a server: its certificate, its key, and what clients must show. For server/http alone.
#pragma once

#include <boost/asio/ssl/context.hpp>
#include <memory>

#include "base/result.h"
#include "server/http/options.h"

namespace jewel {

// TLS 1.2 and 1.3. Errors name the file and what OpenSSL said about it.
Result<std::unique_ptr<boost::asio::ssl::context>> make_tls_context(const HttpTls& tls);

}  // namespace jewel
