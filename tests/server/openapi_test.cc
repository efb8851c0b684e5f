// /openapi.json agrees with the server: with its routes, and with every field that its readers ask for.
#include "server/openai/openapi.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <set>

#include "api/answers.h"
#include "server/openai/api_server.h"
#include "server/openai/field_reader.h"

namespace jewel {
namespace {

namespace json = boost::json;
using Names = std::set<std::string>;

class OpenApi : public testing::Test {
 protected:
  OpenApi() : api_(demo_engine(), {.defaults = {.model_names = {"demo"}}}) {
    Reply reply = api_.handle({.method = "GET", .path = "/openapi.json"});
    boost::system::error_code error;
    document_ = json::parse(std::get<ServerResponse>(reply).body, error);
    EXPECT_FALSE(error) << error.message();
  }

  // What readers ask for when they get this body, with paths.
  Names asked_for(const std::string& path, const json::value& body) {
    Names names;
    FieldReader::record_into(&names);
    {
      const Reply reply = api_.handle({.method = "POST", .path = path, .body = json::serialize(body)});
    }
    FieldReader::record_into(nullptr);
    return names;
  }

  const json::value& schema(std::string_view name) const {
    return document_.at("components").at("schemas").at(name);
  }
  // Follows references and looks into anyOf: all properties that an object of this schema may have.
  Names properties_of(const json::value& what) const {
    Names names;
    if (!what.is_object()) return names;
    const json::object& object = what.get_object();
    if (const json::value* to = object.if_contains("$ref")) {
      const std::string_view path(to->get_string());
      names.merge(properties_of(schema(path.substr(path.rfind('/') + 1))));
    }
    if (const json::value* properties = object.if_contains("properties")) {
      for (const auto& property : properties->get_object()) names.insert(property.key());
    }
    if (const json::value* choices = object.if_contains("anyOf")) {
      for (const json::value& choice : choices->get_array()) names.merge(properties_of(choice));
    }
    return names;
  }

  ApiServer api_;
  json::value document_;
};

void expect_references(const json::value& value, const json::value& document) {
  if (value.is_array()) {
    for (const json::value& item : value.get_array()) expect_references(item, document);
  } else if (value.is_object()) {
    for (const auto& [key, item] : value.get_object()) {
      expect_references(item, document);
      if (key != "$ref") continue;
      boost::system::error_code missing;
      EXPECT_NE(document.find_pointer(item.get_string().subview(1), missing), nullptr) << item;
    }
  }
}

TEST_F(OpenApi, RefersToWhatIsThere) {
  EXPECT_EQ(document_.at("openapi"), json::value("3.1.0"));
  expect_references(document_, document_);
}

TEST_F(OpenApi, HasTheServersRoutesAndNoOthers) {
  Names described;
  for (const ApiOperation& operation : api_operations())
    described.insert(fmt::format("{} {}", operation.method, operation.path));
  Names there;
  for (const auto& [path, methods] : document_.at("paths").as_object()) {
    for (const auto& [method, operation] : methods.as_object()) {
      std::string upper(method);
      for (char& c : upper) c = static_cast<char>(std::toupper(c));
      there.insert(fmt::format("{} {}", upper, std::string_view(path)));
      EXPECT_TRUE(operation.as_object().contains("operationId"))
          << upper << " " << path << " has no ApiOperation in openapi_fields.cc";
      const Admission admission = api_.admit({.method = upper, .path = path});
      EXPECT_TRUE(admission.refusal == nullptr) << upper << " " << path;
    }
  }
  EXPECT_EQ(described, there);
}

TEST_F(OpenApi, HasTheFieldsThatReadersAskForAndNoOthers) {
  for (const ApiOperation& operation : api_operations()) {
    for (const std::string_view form : {operation.body, operation.other_body}) {
      if (form.empty()) continue;
      const json::object& body = schema(form).as_object();
      Names fields;
      for (const std::string& name : asked_for(std::string(operation.path), body.at("examples").at(0))) {
        if (name.find_first_of(".[") == std::string::npos) fields.insert(name);
      }
      Names properties;
      for (const auto& property : body.at("properties").as_object()) properties.insert(property.key());
      EXPECT_THAT(properties, testing::ContainerEq(fields)) << form;
    }
  }
}

TEST_F(OpenApi, HasEachFieldOnce) {
  for (const ApiBody& body : api_bodies()) {
    Names names;
    for (const auto& fields : body.fields) {
      for (const ApiField& field : fields)
        EXPECT_TRUE(names.emplace(field.name).second) << body.name << ": " << field.name;
    }
  }
}

TEST_F(OpenApi, HasTheFieldsOfObjectsInside) {
  for (const ApiOperation& operation : api_operations()) {
    if (operation.body.empty()) continue;
    const json::object& body = schema(operation.body).as_object();
    for (const auto& [name, property] : body.at("properties").as_object()) {
      const Names inside = properties_of(property);
      if (inside.empty()) continue;
      json::value with = body.at("examples").at(0);
      if (name == "stream_options") with.as_object()["stream"] = true;
      with.as_object()[name] = json::object();
      const std::string prefix = std::string(name) + ".";
      for (const std::string& asked : asked_for(std::string(operation.path), with)) {
        if (!asked.starts_with(prefix)) continue;
        EXPECT_TRUE(inside.contains(asked.substr(prefix.size()))) << operation.body << ": " << asked;
      }
    }
  }
}

TEST_F(OpenApi, NeedsNoKey) {
  ApiServer keyed(demo_engine(), {.defaults = {.model_names = {"demo"}}, .api_keys = {"secret"}});
  EXPECT_TRUE(keyed.admit({.method = "GET", .path = "/openapi.json"}).refusal == nullptr);
}

}  // namespace
}  // namespace jewel
