"""Writes C++ that makes cc1plus grow: argument 1: number of instantiated families, argument 2: the file."""
import sys

HEAD = """
#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <unordered_map>
#include <variant>
#include <vector>
template <int kN> struct Tag { static constexpr int value = kN; std::string name = std::to_string(kN); auto operator<=>(const Tag&) const = default; };
template <int kN> struct Fib { static constexpr long value = Fib<kN - 1>::value % 1000003 + kN; };
template <> struct Fib<0> { static constexpr long value = 1; };
"""
FAMILY = """
namespace f{n} {{
struct Item {{ int id = {n}; std::string text = "item {n}"; double weight = {n}.5; }};
using Any = std::variant<Item, Tag<{n}>, std::vector<Tag<{n}>>, std::map<std::string, Tag<{n}>>>;
struct Store {{
  std::map<std::string, Item> by_name; std::unordered_map<int, std::shared_ptr<Item>> by_id; std::vector<Any> all;
  std::function<long(const Item&)> measure = [](const Item& item) {{ return item.id + Fib<{depth}>::value; }};
  long Add(int i) {{
    by_name.emplace(std::to_string(i), Item{{i, "x", 1.0}}); by_id[i] = std::make_shared<Item>(); all.emplace_back(Tag<{n}>{{}});
    std::sort(all.begin(), all.end(), [](const Any& a, const Any& b) {{ return a.index() < b.index(); }});
    long sum = 0; for (const auto& any : all) sum += std::visit([](const auto& x) {{ return (long)sizeof(x); }}, any);
    for (const auto& [name, item] : by_name) sum += measure(item) + (long)name.size();
    return sum;
  }}
}};
}}
long run{n}(int i) {{ f{n}::Store store; return store.Add(i) + std::get<0>(std::tuple<long, Tag<{n}>>(i, {{}})); }}
"""


def main():
    families = int(sys.argv[1])
    with open(sys.argv[2], "w", encoding="utf-8") as out:
        out.write(HEAD)
        for n in range(1, families + 1):
            out.write(FAMILY.format(n=n, depth=100 + n % 300))
        calls = " + ".join(f"run{n}(i)" for n in range(1, families + 1))
        out.write(f"long all(int i) {{ return {calls}; }}\n")


if __name__ == "__main__":
    main()
