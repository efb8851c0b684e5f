#include "server/http/tls.h"

#include <fmt/format.h>
#include <openssl/ssl.h>

namespace jewel {
namespace {

using Context = boost::asio::ssl::context;

Error no_good(std::string_view flag, const std::string& file, const boost::system::error_code& error) {
  return invalid(fmt::format("--{} {}: {}; expected a PEM file", flag, file, error.message()),
                 std::string(flag));
}

}  // namespace

Result<std::unique_ptr<Context>> make_tls_context(const HttpTls& tls) {
  auto context = std::make_unique<Context>(Context::tls_server);
  boost::system::error_code error;
  error = context->set_options(Context::default_workarounds | Context::no_sslv2 | Context::no_sslv3 |
                                   Context::no_tlsv1 | Context::no_tlsv1_1,
                               error);
  // An idle connection gives its 32 KiB of buffers back.
  ::SSL_CTX_set_mode(context->native_handle(), SSL_MODE_RELEASE_BUFFERS);
  if (context->use_certificate_chain_file(tls.certfile, error))
    return no_good("ssl-certfile", tls.certfile, error);
  const std::string& key = tls.keyfile.empty() ? tls.certfile : tls.keyfile;
  if (context->use_private_key_file(key, Context::pem, error)) return no_good("ssl-keyfile", key, error);
  if (!tls.ca_certs.empty() && context->load_verify_file(tls.ca_certs, error))
    return no_good("ssl-ca-certs", tls.ca_certs, error);
  if (tls.cert_reqs == 1) error = context->set_verify_mode(boost::asio::ssl::verify_peer, error);
  if (tls.cert_reqs == 2)
    error = context->set_verify_mode(
        boost::asio::ssl::verify_peer | boost::asio::ssl::verify_fail_if_no_peer_cert, error);
  return context;
}

}  // namespace jewel
