// Pictures by address: what is refused, what is said, and how much is taken. Servers are stand-ins on
// loopback, which is let through by naming it or by the rules' hook for tests.
#include <arpa/inet.h>
#include <curl/curl.h>
#include <dlfcn.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cctype>
#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <optional>
#include <random>

#include "base/comes_true.h"
#include "server/images/image_loader.h"
#include "server/images/image_url.h"
#include "server/images/public_address.h"
#include "server/stand_in_site.h"

namespace jewel {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;
using testing::Not;

const std::string kPng = std::string("\x89PNG\r\n\x1a\n") + std::string(100, 'x');  // enough to be told

bool is_public(const std::string& text) {
  sockaddr_in in{};
  sockaddr_in6 in6{};
  if (::inet_pton(AF_INET, text.c_str(), &in.sin_addr) == 1) {
    in.sin_family = AF_INET;
    return is_public_address(reinterpret_cast<sockaddr*>(&in));
  }
  EXPECT_EQ(::inet_pton(AF_INET6, text.c_str(), &in6.sin6_addr), 1) << text;
  in6.sin6_family = AF_INET6;
  return is_public_address(reinterpret_cast<sockaddr*>(&in6));
}

TEST(PublicAddress, TellsTheInternetFromTheRest) {
  for (const char* good :
       {"1.1.1.1",         "8.8.8.8",         "9.255.255.255",  "11.0.0.0",       "100.63.255.255",
        "100.128.0.0",     "126.255.255.255", "128.0.0.0",      "172.15.255.255", "172.32.0.0",
        "192.167.255.255", "192.169.0.0",     "198.17.255.255", "198.20.0.0",     "223.255.255.255",
        "2606:4700::1111", "2a00::1",         "2001:200::1",    "2620:fe::fe",    "::ffff:8.8.8.8",
        "64:ff9b::808:808"}) {
    EXPECT_TRUE(is_public(good)) << good;
  }
  for (const char* bad : {"0.0.0.0",
                          "0.1.2.3",
                          "10.0.0.1",
                          "10.255.255.255",
                          "100.64.0.1",
                          "100.100.100.200",
                          "100.127.255.255",
                          "127.0.0.1",
                          "127.255.255.255",
                          "169.254.169.254",
                          "172.16.0.1",
                          "172.31.255.255",
                          "192.0.0.192",
                          "192.0.2.1",
                          "192.88.99.1",
                          "192.168.0.1",
                          "198.18.0.1",
                          "198.19.255.255",
                          "198.51.100.1",
                          "203.0.113.1",
                          "224.0.0.1",
                          "239.255.255.255",
                          "240.0.0.1",
                          "255.255.255.255",
                          "::",
                          "::1",
                          "::7f00:1",
                          "::ffff:127.0.0.1",
                          "::ffff:10.0.0.1",
                          "::ffff:169.254.169.254",
                          "::ffff:0:127.0.0.1",
                          "64:ff9b::7f00:1",
                          "64:ff9b::a9fe:a9fe",
                          "64:ff9b:1::808:808",
                          "100::1",
                          "fe80::1",
                          "febf::1",
                          "fec0::1",
                          "fc00::1",
                          "fd00:ec2::254",
                          "ff02::1",
                          "2001::1",
                          "2001:0:808:808::1",
                          "2001:10::1",
                          "2001:db8::1",
                          "2002:7f00:1::",
                          "2002:808:808::1",
                          "3fff::1",
                          "5f00::1",
                          "4000::1"}) {
    EXPECT_FALSE(is_public(bad)) << bad;
  }
  sockaddr local{};
  local.sa_family = AF_UNIX;
  EXPECT_FALSE(is_public_address(&local));
}

TEST(ImageUrl, IsTakenApartStrictly) {
  const auto host = [](const std::string& url) {
    const auto parsed = parse_image_url(url);
    return parsed.ok() ? parsed->host : "refused: " + parsed.error().message;
  };
  EXPECT_EQ(host("http://Example.COM/a b"), host("http:// x"));
  EXPECT_EQ(host("HTTPS://Example.COM./a.png?x=@#y"), "example.com");
  EXPECT_EQ(host("http://example.com:8080"), "example.com");
  EXPECT_EQ(host("http://[2001:DB8::1]:80/x"), "2001:db8::1");
  for (const char* bad : {"http://",
                          "http:///x",
                          "http://a@b/",
                          "http://a:b@c/",
                          "http://a\\@b/",
                          "http://b/\\x",
                          "http://a%2eb/",
                          "http://[::1",
                          "http://[::1%25eth0]/",
                          "http://a:80x/",
                          "http://a:123456/",
                          "http://a:65536/",
                          "http://a b/",
                          "http://a\tb/",
                          "http://\xc3\xa4.de/",
                          "ftp://a/",
                          "gopher://a/",
                          "http:a",
                          "data:image/png;base64,",
                          "//a/b",
                          "file://host/x",
                          "file://relative",
                          "file:///a%00b",
                          "file:///a%zz"}) {
    EXPECT_THAT(host(bad), HasSubstr("refused")) << bad;
  }
  EXPECT_EQ(parse_image_url("file:///a%20b/c.png")->path, "/a b/c.png");
  EXPECT_EQ(parse_image_url("file://localhost/c.png")->path, "/c.png");
  EXPECT_TRUE(looks_like_image_url("HtTp://x"));
  EXPECT_FALSE(looks_like_image_url("data:image/png;base64,http://"));
}

// libcurl's own reading of a URL, opened as the program opens it.
class CurlUrls {
 public:
  CurlUrls() : library_(::dlopen("libcurl.so.4", RTLD_NOW | RTLD_LOCAL)) {
    if (library_ == nullptr) return;
    find(make_, "curl_url");
    find(set_, "curl_url_set");
    find(get_, "curl_url_get");
    find(cleanup_, "curl_url_cleanup");
    find(free_, "curl_free");
  }
  bool there() const { return library_ != nullptr; }
  // In small letters, without brackets and a last dot; nullopt: libcurl refuses the URL.
  std::optional<std::string> host(const std::string& url) const {
    CURLU* handle = make_();
    char* text = nullptr;
    std::optional<std::string> host;
    if (set_(handle, CURLUPART_URL, url.c_str(), 0) == CURLUE_OK &&
        get_(handle, CURLUPART_HOST, &text, 0) == CURLUE_OK) {
      host = text;
      free_(text);
      if (host->starts_with('[')) host = host->substr(1, host->size() - 2);
      if (host->ends_with('.')) host->pop_back();
      for (char& c : *host) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    }
    cleanup_(handle);
    return host;
  }

 private:
  template <typename F>
  void find(F& function, const char* name) {
    function = reinterpret_cast<F>(::dlsym(library_, name));
    ASSERT_NE(function, nullptr) << name;
  }
  void* library_;
  decltype(&curl_url) make_ = nullptr;
  decltype(&curl_url_set) set_ = nullptr;
  decltype(&curl_url_get) get_ = nullptr;
  decltype(&curl_url_cleanup) cleanup_ = nullptr;
  decltype(&curl_free) free_ = nullptr;
};

// The host that is checked is the host that is asked: what both accept, both read alike, but for numbers,
// which libcurl writes as addresses (and which no list names in such a spelling).
TEST(ImageUrl, IsReadAsLibcurlReadsIt) {
  const CurlUrls curl;
  if (!curl.there()) GTEST_SKIP() << "no libcurl";
  const std::vector<std::string> pieces{"http://",
                                        "https://",
                                        "HTTP://",
                                        "good.example",
                                        "evil.example",
                                        "@",
                                        ":",
                                        "/",
                                        "\\",
                                        "?",
                                        "#",
                                        ".",
                                        "..",
                                        "80",
                                        "8080",
                                        "127.0.0.1",
                                        "[::1]",
                                        "[",
                                        "]",
                                        "%2e",
                                        "%40",
                                        "%2f",
                                        "%00",
                                        "0x7f",
                                        "a",
                                        "-",
                                        "_",
                                        ";",
                                        "&",
                                        "=",
                                        "//",
                                        " ",
                                        "\t",
                                        "\xc3\xa4",
                                        "\xe3\x80\x82",
                                        "user",
                                        "::"};
  std::mt19937 random(7);
  int both = 0;
  for (int i = 0; i < 200'000; ++i) {
    std::string url = pieces[random() % 3];
    for (size_t n = random() % 8; n > 0; --n) url += pieces[random() % pieces.size()];
    const auto ours = parse_image_url(url);
    if (!ours.ok()) continue;
    const auto theirs = curl.host(url);
    if (!theirs) continue;
    ++both;
    const bool number = ours->host.find_first_not_of("0123456789abcdefx.:") == std::string::npos;
    if (!number) EXPECT_EQ(ours->host, *theirs) << url;
  }
  EXPECT_GT(both, 1000);
}

ImageRules on_loopback() {
  ImageRules rules;
  rules.max_bytes = 100'000;
  rules.timeout_s = 2;
  rules.connect_timeout_s = 1;
  rules.hosts = {{"127.0.0.1"}};
  return rules;
}

struct Outcome {
  ErrorCode code = ErrorCode::kInternal;
  std::string text;  // the message, or the bytes
  bool ok = false;
};

Outcome load(const ImageRules& rules, const std::string& url) {
  const std::atomic<bool> cancelled{false};
  const auto got = ImageSource(rules).load(url, cancelled);
  if (got.ok()) return {.text = *got, .ok = true};
  return {.code = got.error().code, .text = got.error().message};
}

void expect_refused(const ImageRules& rules, const std::string& url, const std::string& part) {
  const Outcome got = load(rules, url);
  EXPECT_FALSE(got.ok) << url;
  EXPECT_EQ(got.code, ErrorCode::kInvalid) << url << ": " << got.text;
  EXPECT_THAT(got.text, HasSubstr(part)) << url;
}

void expect_missing(const ImageRules& rules, const std::string& url, const std::string& part) {
  const Outcome got = load(rules, url);
  EXPECT_FALSE(got.ok) << url;
  EXPECT_EQ(got.code, ErrorCode::kNotFound) << url << ": " << got.text;
  EXPECT_THAT(got.text, HasSubstr(part)) << url;
}

TEST(ImageSource, FetchesFromAHostThatIsNamed) {
  StandInSite site([](const std::string&) { return site_answer(kPng, "Content-Type: text/html\r\n"); });
  const Outcome got = load(on_loopback(), site.url("/a.png?x=1"));
  EXPECT_TRUE(got.ok) << got.text;
  EXPECT_EQ(got.text, kPng);
  const std::string head = site.heads().at(0);
  EXPECT_THAT(head, HasSubstr("GET /a.png?x=1 HTTP/1.1"));
  EXPECT_THAT(head, Not(HasSubstr("Authorization")));
  EXPECT_THAT(head, Not(HasSubstr("Cookie")));
}

TEST(ImageSource, NeverConnectsToWhatIsNotPublic) {
  StandInSite site([](const std::string&) { return site_answer(kPng); });
  ImageRules open = on_loopback();
  open.hosts.reset();
  // Loopback by number in many spellings, by name, by an IPv6 form; the metadata of clouds.
  for (const char* host : {"127.0.0.1", "127.1", "2130706433", "0x7f000001", "017700000001", "0", "localhost",
                           "[::ffff:127.0.0.1]", "[::1]", "[::]", "0.0.0.0"}) {
    expect_refused(open, site.url("/", host), "not of the public internet");
  }
  for (const char* url :
       {"http://169.254.169.254/latest/meta-data/", "http://10.0.0.1/", "http://192.168.1.1/",
        "http://[fd00:ec2::254]/", "http://100.100.100.200/", "http://[64:ff9b::a9fe:a9fe]/"}) {
    expect_refused(open, url, "not of the public internet");
  }
  EXPECT_TRUE(site.heads().empty());
  // A list does not open what it does not name, nor names below a host anything that is not public.
  ImageRules narrow = on_loopback();
  narrow.hosts = {{"example.com", ".localhost"}};
  expect_refused(narrow, site.url("/"), "--allowed-media-domains");
  expect_refused(narrow, "http://sub.example.com/", "--allowed-media-domains");
  expect_refused(narrow, site.url("/", "2130706433"), "--allowed-media-domains");
  narrow.hosts = {{".example.com"}};
  EXPECT_TRUE(ImageSource(narrow).check("http://a.example.com/").ok());
  EXPECT_FALSE(ImageSource(narrow).check("http://badexample.com/").ok());
  narrow.hosts = {std::vector<std::string>()};
  expect_refused(narrow, "https://example.com/a.png", "data URL");
  EXPECT_TRUE(site.heads().empty());
}

// A name that was public when it was looked up first and is not the next time: the address that is connected
// to is what counts, each time anew.
TEST(ImageSource, JudgesEachConnectionForItself) {
  StandInSite site([&](const std::string& path) {
    return path == "/again" ? site_redirect("/picture") : site_answer(kPng);
  });
  int asked = 0;
  ImageRules rules = on_loopback();
  rules.hosts.reset();
  rules.public_address = [&](const sockaddr* address) {
    EXPECT_EQ(address->sa_family, AF_INET);
    return ++asked == 1;
  };
  expect_refused(rules, site.url("/again"), "not of the public internet");
  EXPECT_EQ(asked, 2);
  EXPECT_EQ(site.heads().size(), 1U);
}

TEST(ImageSource, FollowsRedirectsAsFarAsTheyMayLead) {
  StandInSite* self = nullptr;
  StandInSite site([&](const std::string& path) {
    if (path == "/one") return site_redirect("/picture");
    if (path == "/three") return site_redirect("/two");
    if (path == "/two") return site_redirect("/one");
    if (path == "/four") return site_redirect("/three");
    if (path == "/private") return site_redirect("http://169.254.169.254/");
    if (path == "/second") return site_redirect(self->url("/picture", "127.0.0.2"));
    if (path == "/name") return site_redirect(self->url("/picture", "localhost"));
    if (path == "/file") return site_redirect("file:///etc/passwd");
    if (path == "/user") return site_redirect("http://127.0.0.1@127.0.0.2/");
    if (path == "/nowhere") return site_answer("", "", "302 Found");
    return site_answer(kPng);
  });
  self = &site;
  EXPECT_EQ(load(on_loopback(), site.url("/one")).text, kPng);
  EXPECT_EQ(load(on_loopback(), site.url("/three")).text, kPng);
  expect_refused(on_loopback(), site.url("/four"), "more than 3 redirects");
  for (const char* path : {"/private", "/second", "/name", "/file", "/user"}) {
    expect_refused(on_loopback(), site.url(path), "redirects to where");
    EXPECT_THAT(load(on_loopback(), site.url(path)).text, Not(HasSubstr("169.254")));
  }
  EXPECT_FALSE(load(on_loopback(), site.url("/nowhere")).ok);
  // Without a list: the first is public for this test, where it leads is not.
  ImageRules open = on_loopback();
  open.hosts.reset();
  open.public_address = [](const sockaddr* address) {
    sockaddr_in in{};
    std::memcpy(&in, address, sizeof(in));
    return in.sin_addr.s_addr == htonl(INADDR_LOOPBACK);
  };
  EXPECT_EQ(load(open, site.url("/one")).text, kPng);
  expect_refused(open, site.url("/second"), "not of the public internet");
  ImageRules still = on_loopback();
  still.max_redirects = 0;
  expect_refused(still, site.url("/one"), "redirects are not followed");
}

TEST(ImageSource, SaysWhyThereIsNoPicture) {
  const std::string large = kPng + std::string(200'000, 'x');
  StandInSite site([&](const std::string& path) {
    if (path == "/404") return site_answer("none", "", "404 Not Found");
    if (path == "/500") return site_answer("none", "", "500 Oops");
    if (path == "/html") return site_answer("<html>" + std::string(100, ' '), "Content-Type: image/png\r\n");
    if (path == "/short-html") return site_answer("<html>", "Content-Type: image/png\r\n");
    if (path == "/empty") return site_answer("");
    if (path == "/large") return site_answer(large);
    if (path == "/large-unsaid") return SiteAnswer{.bytes = "HTTP/1.1 200 OK\r\n\r\n" + large};
    if (path == "/gzip") return site_answer("\x1f\x8b" + std::string(100, 'x'), "Content-Encoding: gzip\r\n");
    if (path == "/cut") return SiteAnswer{.bytes = "HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + kPng};
    if (path == "/noise") return SiteAnswer{.bytes = "\x02\x01 no http"};
    if (path == "/slow") return SiteAnswer{.bytes = site_answer(kPng).bytes, .piece = 20, .pause = 500ms};
    return SiteAnswer{.hang = true};
  });
  expect_missing(on_loopback(), site.url("/404"), "answered 404 Not Found");
  expect_missing(on_loopback(), site.url("/500"), "answered 500");
  expect_missing(on_loopback(), site.url("/html"), "expected JPEG");
  expect_missing(on_loopback(), site.url("/short-html"), "expected JPEG");
  expect_missing(on_loopback(), site.url("/empty"), "empty body");
  expect_missing(on_loopback(), site.url("/large"), "larger than the limit of 100000");
  expect_missing(on_loopback(), site.url("/large-unsaid"), "larger than the limit of 100000");
  expect_missing(on_loopback(), site.url("/gzip"), "compressed");
  expect_missing(on_loopback(), site.url("/cut"), "127.0.0.1");
  expect_missing(on_loopback(), site.url("/noise"), "127.0.0.1");
  const auto start = std::chrono::steady_clock::now();
  ImageRules rules = on_loopback();
  rules.timeout_s = 1;
  expect_missing(rules, site.url("/slow"), "timed out");
  expect_missing(rules, site.url("/hang"), "timed out");
  EXPECT_LT(std::chrono::steady_clock::now() - start, 5s);
  rules.hosts = {{"127.0.0.1", "no-such-host.invalid"}};
  expect_missing(rules, "http://no-such-host.invalid/a.png", "no-such-host.invalid");
  expect_missing(rules, "http://127.0.0.1:1/a.png", "127.0.0.1");
  rules.can_fetch = false;
  EXPECT_EQ(load(rules, site.url("/")).code, ErrorCode::kUnsupported);
}

// The limit is of a whole fetch: redirects do not start its clock again.
TEST(ImageSource, HoldsRedirectsToOneLimitOfTime) {
  StandInSite site([](const std::string& path) {
    SiteAnswer answer = path == "/3"   ? site_redirect("/2")
                        : path == "/2" ? site_redirect("/1")
                                       : site_answer(kPng);
    answer.before = 1200ms;
    return answer;
  });
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(load(on_loopback(), site.url("/3")).code, ErrorCode::kNotFound);
  EXPECT_LT(std::chrono::steady_clock::now() - start, 3s);
}

class LocalFiles : public testing::Test {
 protected:
  void SetUp() override {
    base_ = std::filesystem::temp_directory_path() / fmt::format("jewel_files_{}", ::getpid());
    std::filesystem::create_directories(base_ / "open" / "deep");
    std::ofstream(base_ / "open" / "a b.png") << kPng;
    std::ofstream(base_ / "open" / "deep" / "c.png") << kPng;
    std::ofstream(base_ / "open" / "text.png") << "no picture";
    std::ofstream(base_ / "open" / "large.png") << kPng << std::string(200'000, 'x');
    std::ofstream(base_ / "secret.png") << kPng;
    std::filesystem::create_directories(base_ / "open-not");
    std::ofstream(base_ / "open-not" / "x.png") << kPng;
    std::filesystem::create_symlink(base_ / "secret.png", base_ / "open" / "out.png");
    std::filesystem::create_symlink("../..", base_ / "open" / "deep" / "up");
    std::filesystem::create_symlink("deep/c.png", base_ / "open" / "in.png");
    ::mkfifo((base_ / "open" / "pipe.png").c_str(), 0600);
    rules_.max_bytes = 100'000;
    rules_.local_directory = std::filesystem::canonical(base_ / "open").string();
  }
  void TearDown() override { std::filesystem::remove_all(base_); }
  std::string url(const std::string& path) const { return "file://" + (base_ / path).string(); }

  std::filesystem::path base_;
  ImageRules rules_;
};

TEST_F(LocalFiles, AreReadUnderOneDirectoryOnly) {
  EXPECT_EQ(load(rules_, url("open/a%20b.png")).text, kPng);
  EXPECT_EQ(load(rules_, url("open/deep/../a%20b.png")).text, kPng);
  EXPECT_EQ(load(rules_, url("open/in.png")).text, kPng);
  for (const char* path : {"secret.png", "open/../secret.png", "open/deep/%2e%2e/../secret.png",
                           "open-not/x.png", "missing.png", "open"}) {
    expect_refused(rules_, url(path), "not under the directory");
  }
  expect_refused(rules_, "file:///etc/passwd", "not under the directory");
  for (const char* path : {"open/out.png", "open/deep/up/secret.png", "open/missing.png", "open/a%20b.png/x"})
    expect_missing(rules_, url(path), "no such file");
  for (const char* path : {"open/pipe.png", "open/deep"}) expect_missing(rules_, url(path), "regular");
  expect_missing(rules_, url("open/large.png"), "larger than the limit");
  expect_missing(rules_, url("open/text.png"), "expected JPEG");
  rules_.local_directory.clear();
  expect_refused(rules_, url("open/in.png"), "--allowed-local-media-path");
}

// Starts a load and waits for its end.
ImageLoader::State wait_for(ImageLoader& loader, const std::vector<WantedImage>& wanted) {
  std::mutex mutex;
  std::condition_variable ended;
  bool over = false;
  auto load = loader.start(wanted, [&] {
    const std::scoped_lock lock(mutex);
    over = true;
    ended.notify_one();
  });
  if (!load.ok()) return {.finished = true, .error = load.error()};
  std::unique_lock lock(mutex);
  EXPECT_TRUE(ended.wait_for(lock, 10s, [&] { return over; }));
  return loader.state(**load);
}

TEST(ImageLoader, BringsAllOfARequest) {
  StandInSite site([](const std::string& path) { return site_answer(kPng + path); });
  ImageLoader loader(on_loopback());
  std::vector<WantedImage> wanted;
  wanted.reserve(20);
  for (int i = 0; i < 20; ++i)
    wanted.emplace_back(site.url(fmt::format("/{}", i)), fmt::format("image {}", i));
  const ImageLoader::State state = wait_for(loader, wanted);
  EXPECT_FALSE(state.error);
  for (int i = 0; i < 20; ++i)
    EXPECT_EQ(*wanted[static_cast<size_t>(i)].file(), kPng + fmt::format("/{}", i));
}

TEST(ImageLoader, EndsWithTheFirstThatFails) {
  StandInSite site([](const std::string& path) {
    return path == "/bad" ? site_answer("", "", "404 Not Found") : SiteAnswer{.hang = true};
  });
  ImageLoader loader(on_loopback());
  const auto start = std::chrono::steady_clock::now();
  const ImageLoader::State state =
      wait_for(loader, {{site.url("/1"), "one"}, {site.url("/bad"), "two"}, {site.url("/2"), "three"}});
  EXPECT_LT(std::chrono::steady_clock::now() - start, 1500ms);
  ASSERT_TRUE(state.error);
  EXPECT_EQ(state.error->param, "two");
  EXPECT_EQ(state.error->code, ErrorCode::kNotFound);
}

TEST(ImageLoader, HasLimits) {
  StandInSite site([](const std::string&) { return site_answer(kPng); });
  ImageRules rules = on_loopback();
  rules.max_images = 2;
  rules.max_held_bytes = 2 * kPng.size();
  ImageLoader loader(rules);
  std::vector<WantedImage> three(3, {site.url("/"), "image"});
  EXPECT_THAT(wait_for(loader, three).error->message, HasSubstr("at most 2 image(s)"));
  std::vector<WantedImage> two{{site.url("/1"), "a"}, {site.url("/2"), "b"}};
  EXPECT_FALSE(wait_for(loader, two).error);
  const ImageLoader::State full = wait_for(loader, {{site.url("/3"), "c"}});
  ASSERT_TRUE(full.error);
  EXPECT_EQ(full.error->code, ErrorCode::kUnavailable);
  two.clear();  // gives the bytes back, once the loader's thread has let go of them too
  EXPECT_TRUE(comes_true([&] { return !wait_for(loader, {{site.url("/4"), "d"}}).error; }, 2s));
}

// A request whose servers say nothing must not keep another one waiting.
TEST(ImageLoader, LetsNobodyTakeEveryThread) {
  StandInSite site([](const std::string& path) {
    return path.starts_with("/hang") ? SiteAnswer{.hang = true} : site_answer(kPng);
  });
  ImageLoader loader(on_loopback());
  std::vector<WantedImage> hanging;
  hanging.reserve(40);
  for (int i = 0; i < 40; ++i) hanging.emplace_back(site.url(fmt::format("/hang{}", i)), "x");
  auto stuck = loader.start(hanging, [] {});
  ASSERT_TRUE(stuck.ok());
  EXPECT_TRUE(comes_true([&] { return site.heads().size() >= 4; }, 5s));
  EXPECT_EQ(site.heads().size(), 4U);  // of one request at once
  const auto start = std::chrono::steady_clock::now();
  EXPECT_FALSE(wait_for(loader, {{site.url("/quick"), "q"}}).error);
  EXPECT_LT(std::chrono::steady_clock::now() - start, 1500ms);  // the others take two seconds
  ImageLoader::give_up(**stuck);
  // The connections are closed, within about a second.
  EXPECT_TRUE(comes_true([&] { return site.left() >= 4; }, 3s));
}

TEST(ImageLoader, EndsWhileSomethingIsUnderWay) {
  StandInSite site([](const std::string&) { return SiteAnswer{.hang = true}; });
  const auto start = std::chrono::steady_clock::now();
  {
    ImageLoader loader(on_loopback());
    ASSERT_TRUE(loader.start({{site.url("/"), "x"}}, [] {}).ok());
    EXPECT_TRUE(comes_true([&] { return !site.heads().empty(); }));
  }
  EXPECT_LT(std::chrono::steady_clock::now() - start, 2s);
}

}  // namespace
}  // namespace jewel
