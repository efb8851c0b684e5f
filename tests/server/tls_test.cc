// HTTPS as a client sees it, with certificates that the test makes: an authority, a server, a client of that
// authority and one of another.
#include <arpa/inet.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>

#include "server/http/http_server.h"
#include "server/raw_client.h"

namespace jewel {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;

class Echo final : public HttpHandler {
 public:
  Admission admit(const ServerRequest& /*head*/) override { return {.max_body_bytes = 1 << 20}; }
  Reply handle(ServerRequest&& request) override {
    return ServerResponse{.content_type = "text/plain", .body = request.path + " " + request.body};
  }
  ServerResponse trouble(int status, std::string_view message) override {
    return {.status = status, .body = std::string(message)};
  }
};

struct Identity {
  EVP_PKEY* key = nullptr;
  X509* certificate = nullptr;
  std::string key_file;
  std::string certificate_file;
};

// Files of its own in a folder of their own, gone with it.
class Certificates {
 public:
  Certificates() : folder_(std::filesystem::temp_directory_path() / fmt::format("jewel_tls_{}", ::getpid())) {
    std::filesystem::create_directories(folder_);
    authority = make("authority", nullptr);
    stranger = make("stranger", nullptr);
    server = make("localhost", &authority);
    client = make("client", &authority);
    wrong_client = make("wrong client", &stranger);
  }
  ~Certificates() {
    for (const Identity* one : {&authority, &stranger, &server, &client, &wrong_client}) {
      ::X509_free(one->certificate);
      ::EVP_PKEY_free(one->key);
    }
    std::filesystem::remove_all(folder_);
  }
  Certificates(const Certificates&) = delete;
  Certificates& operator=(const Certificates&) = delete;

  std::string file(const std::string& name) const { return (folder_ / name).string(); }
  Identity authority, stranger, server, client, wrong_client;

 private:
  // By `issuer`, or by itself.
  Identity make(const std::string& name, const Identity* issuer) const {
    Identity made{.key = ::EVP_EC_gen("P-256"), .certificate = ::X509_new()};
    X509* x = made.certificate;
    ::X509_set_version(x, 2);
    ::ASN1_INTEGER_set(::X509_get_serialNumber(x), static_cast<long>(name.size()));
    ::X509_gmtime_adj(::X509_getm_notBefore(x), -3600);
    ::X509_gmtime_adj(::X509_getm_notAfter(x), 3600);
    ::X509_set_pubkey(x, made.key);
    ::X509_NAME_add_entry_by_txt(::X509_get_subject_name(x), "CN", MBSTRING_ASC,
                                 reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
    ::X509_set_issuer_name(x, ::X509_get_subject_name(issuer != nullptr ? issuer->certificate : x));
    if (issuer == nullptr) {
      X509_EXTENSION* is_authority =
          ::X509V3_EXT_conf_nid(nullptr, nullptr, NID_basic_constraints, "critical,CA:TRUE");
      ::X509_add_ext(x, is_authority, -1);
      ::X509_EXTENSION_free(is_authority);
    }
    ::X509_sign(x, issuer != nullptr ? issuer->key : made.key, ::EVP_sha256());
    made.key_file = file(name + ".key");
    made.certificate_file = file(name + ".pem");
    FILE* out = std::fopen(made.key_file.c_str(), "w");
    ::PEM_write_PrivateKey(out, made.key, nullptr, nullptr, 0, nullptr, nullptr);
    std::fclose(out);
    out = std::fopen(made.certificate_file.c_str(), "w");
    ::PEM_write_X509(out, x);
    std::fclose(out);
    return made;
  }
  const std::filesystem::path folder_;
};

// One request of a client that trusts the authority and shows `own`, if any. The answer, or what went wrong.
std::string https_get(int port, const Identity& trusted, const Identity* own,
                      int max_version = TLS1_3_VERSION) {
  SSL_CTX* context = ::SSL_CTX_new(::TLS_client_method());
  ::SSL_CTX_set_max_proto_version(context, max_version);
  ::SSL_CTX_set_security_level(context, 0);  // lets old versions be offered at all
  ::SSL_CTX_set_verify(context, SSL_VERIFY_PEER, nullptr);
  ::SSL_CTX_load_verify_file(context, trusted.certificate_file.c_str());
  if (own != nullptr) {
    ::SSL_CTX_use_certificate_file(context, own->certificate_file.c_str(), SSL_FILETYPE_PEM);
    ::SSL_CTX_use_PrivateKey_file(context, own->key_file.c_str(), SSL_FILETYPE_PEM);
  }
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const timeval patience{.tv_sec = 10, .tv_usec = 0};
  ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  SSL* ssl = ::SSL_new(context);
  std::string result;
  if (::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
    result = "no connection";
  } else {
    ::SSL_set_fd(ssl, fd);
    constexpr std::string_view kRequest = "GET /tls HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    if (::SSL_connect(ssl) != 1) {
      result = "no handshake";
    } else {
      ::SSL_write(ssl, kRequest.data(), static_cast<int>(kRequest.size()));
      char buffer[4096];
      int n = 0;
      while ((n = ::SSL_read(ssl, buffer, sizeof(buffer))) > 0) result.append(buffer, static_cast<size_t>(n));
      if (::SSL_get_error(ssl, n) != SSL_ERROR_ZERO_RETURN) result += "(cut off)";
    }
  }
  ::SSL_free(ssl);
  ::SSL_CTX_free(context);
  ::close(fd);
  return result;
}

class Tls : public testing::Test {
 protected:
  void start(int cert_reqs = 0) {
    HttpOptions options{.host = "127.0.0.1", .port = 0};
    options.tls = {.keyfile = files_.server.key_file,
                   .certfile = files_.server.certificate_file,
                   .ca_certs = files_.authority.certificate_file,
                   .cert_reqs = cert_reqs};
    auto server = HttpServer::start(options, echo_);
    ASSERT_TRUE(server.ok()) << server.error().message;
    server_ = std::move(*server);
  }
  std::string get(const Identity* own = nullptr) { return https_get(server_->port(), files_.authority, own); }

  Certificates files_;
  Echo echo_;
  std::unique_ptr<HttpServer> server_;
};

TEST_F(Tls, AnswersOverTlsAndEndsItProperly) {
  start();
  EXPECT_THAT(server_->address(), HasSubstr("https://127.0.0.1:"));
  const std::string answer = get();
  EXPECT_THAT(answer, HasSubstr("HTTP/1.1 200 OK"));
  EXPECT_TRUE(answer.ends_with("/tls ")) << answer;  // close_notify came, nothing was cut off
  EXPECT_THAT(https_get(server_->port(), files_.authority, nullptr, TLS1_2_VERSION), HasSubstr("200 OK"));
  EXPECT_EQ(https_get(server_->port(), files_.authority, nullptr, TLS1_1_VERSION), "no handshake");
  EXPECT_EQ(https_get(server_->port(), files_.stranger, nullptr), "no handshake");  // the client's own choice
}

TEST_F(Tls, AsksClientsForACertificate) {
  start(/*cert_reqs=*/2);
  EXPECT_THAT(get(&files_.client), HasSubstr("200 OK"));
  // In TLS 1.3 a client learns of it when it reads.
  EXPECT_THAT(get(), testing::Not(HasSubstr("200 OK")));
  EXPECT_THAT(get(&files_.wrong_client), testing::Not(HasSubstr("200 OK")));
  start(/*cert_reqs=*/1);
  EXPECT_THAT(get(), HasSubstr("200 OK"));
  EXPECT_THAT(get(&files_.wrong_client), testing::Not(HasSubstr("200 OK")));
}

TEST_F(Tls, TellsPlainHttpWhatIsWrong) {
  start();
  RawClient client(server_->port());
  const RawResponse answer = client.get("/v1/models");
  EXPECT_EQ(answer.status, 400);
  EXPECT_TRUE(answer.whole);
  EXPECT_THAT(answer.body, HasSubstr("https://"));
  EXPECT_TRUE(client.closed_within(5s));
  RawClient noise(server_->port());
  ASSERT_TRUE(noise.send(std::string(1000, '\x05')));
  EXPECT_TRUE(noise.closed_within(5s));
  EXPECT_THAT(get(), HasSubstr("200 OK"));
}

TEST_F(Tls, SaysWhichFileIsNoGood) {
  HttpOptions options{.host = "127.0.0.1", .port = 0};
  options.tls = {.keyfile = files_.client.key_file, .certfile = files_.server.certificate_file};
  auto server = HttpServer::start(options, echo_);
  ASSERT_FALSE(server.ok());  // the key of another certificate
  EXPECT_THAT(server.error().message, HasSubstr("--ssl-keyfile"));
  std::ofstream(files_.file("noise.pem")) << "no certificate";
  options.tls = {.keyfile = files_.server.key_file, .certfile = files_.file("noise.pem")};
  server = HttpServer::start(options, echo_);
  ASSERT_FALSE(server.ok());
  EXPECT_THAT(server.error().message, HasSubstr("--ssl-certfile"));
  EXPECT_THAT(server.error().message, HasSubstr("noise.pem"));
}

}  // namespace
}  // namespace jewel
