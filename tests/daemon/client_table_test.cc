#include "daemon/state/client_table.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <set>
#include <vector>

namespace uzswap {
namespace {

TEST(ClientTable, NumbersBeginAtOneAndAreReusedLate) {
  auto table = ClientTable::Create();
  ASSERT_TRUE(table.ok());
  auto first = table->Allocate();
  ASSERT_TRUE(first.ok());
  EXPECT_EQ((*first)->id, 1u);
  (*first)->pid = 77;
  table->Free(*first);
  auto second = table->Allocate();
  ASSERT_TRUE(second.ok());
  EXPECT_EQ((*second)->id, 2u);
  EXPECT_EQ((*second)->pid, 0);
}

TEST(ClientTable, FullTableIsAnErrorAndFreedNumbersComeBackZeroed) {
  auto table = ClientTable::Create();
  ASSERT_TRUE(table.ok());
  std::vector<ClientRecord*> records;
  std::set<uint32_t> ids;
  for (;;) {
    auto record = table->Allocate();
    if (!record.ok()) {
      EXPECT_EQ(record.error().code, zp::Errc::kNoMemory);
      break;
    }
    ASSERT_TRUE(ids.insert((*record)->id).second);
    (*record)->limit_bytes = 5;
    records.push_back(*record);
  }
  EXPECT_EQ(records.size(), kMaxClients - 1);
  table->Free(records[1000]);
  auto again = table->Allocate();
  ASSERT_TRUE(again.ok());
  EXPECT_EQ((*again)->id, 1001u);
  EXPECT_EQ((*again)->limit_bytes, 0u);
  EXPECT_FALSE(table->Allocate().ok());
}

TEST(ClientTable, LayoutLiesInTheFile) {
  auto table = ClientTable::Create();
  ASSERT_TRUE(table.ok());
  TableHeader header{};
  ASSERT_EQ(pread(table->fd(), &header, sizeof(header), 0), static_cast<ssize_t>(sizeof(header)));
  EXPECT_EQ(header.magic, kClientTableMagic);
  EXPECT_EQ(header.layout_version, kClientTableVersion);
  EXPECT_EQ(header.record_bytes, sizeof(ClientRecord));
  EXPECT_EQ(header.capacity, kMaxClients);
  auto record = table->Allocate();
  ASSERT_TRUE(record.ok());
  (*record)->pid = 4711;
  ClientRecord seen{};
  ASSERT_EQ(pread(table->fd(), &seen, sizeof(seen), 4096 + static_cast<off_t>(sizeof(seen))),
            static_cast<ssize_t>(sizeof(seen)));
  EXPECT_EQ(seen.id, 1u);
  EXPECT_EQ(seen.pid, 4711);
  EXPECT_EQ(seen.state, static_cast<uint32_t>(ClientState::kLive));
}

}  // namespace
}  // namespace uzswap
