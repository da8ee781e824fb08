#include "daemon/state/client_table.h"

#include <fcntl.h>
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
  EXPECT_EQ(seen.state, static_cast<uint32_t>(ClientState::kReserved));
  ClientTable::Publish(*record);
  EXPECT_EQ((*record)->state, static_cast<uint32_t>(ClientState::kLive));
}

zp::UniqueFd Duplicate(const ClientTable& table) {
  return zp::UniqueFd(fcntl(table.fd(), F_DUPFD_CLOEXEC, 0));
}

TEST(ClientTable, SuccessorFindsThePublishedOnes) {
  auto table = ClientTable::Create();
  ASSERT_TRUE(table.ok());
  std::vector<uint32_t> published;
  for (int i = 0; i < 20; ++i) {
    ClientRecord* record = table->Allocate().value();
    record->pid = 100 + i;
    Add(table->stats(record).evicted_pages, 7);
    if (i % 3 == 0) continue;  // in the middle of an attach
    ClientTable::Publish(record);
    if (i % 3 == 1) {
      published.push_back(record->id);
    } else {
      ClientTable::Retire(record);
    }
  }
  auto successor = ClientTable::Adopt(Duplicate(*table));
  ASSERT_TRUE(successor.ok());
  std::vector<uint32_t> found;
  for (const ClientRecord* record : successor->Survivors()) {
    EXPECT_EQ(record->pid, 99 + static_cast<int>(record->id));
    EXPECT_EQ(Read(successor->stats(record).evicted_pages), 7u);
    found.push_back(record->id);
  }
  EXPECT_EQ(found, published);
  // The others' numbers are free, and are given out late.
  EXPECT_GT(successor->Allocate().value()->id, 20u);
}

TEST(ClientTable, WhatMakesNoSenseIsRefused) {
  auto table = ClientTable::Create();
  ASSERT_TRUE(table.ok());
  ClientRecord* records[4];
  for (ClientRecord*& record : records) {
    record = table->Allocate().value();
    ClientTable::Publish(record);
  }
  records[0]->id = 77;
  records[1]->progress.steps = 2 * kMessagesPerRead + 1;
  records[2]->arena_start = 5;
  auto successor = ClientTable::Adopt(Duplicate(*table));
  ASSERT_TRUE(successor.ok());
  const auto survivors = successor->Survivors();
  ASSERT_EQ(survivors.size(), 1u);
  EXPECT_EQ(survivors[0]->id, 4u);

  table->header().layout_version = kClientTableVersion + 1;
  EXPECT_EQ(ClientTable::Adopt(Duplicate(*table)).error().code, zp::Errc::kUnsupported);
  table->header().layout_version = kClientTableVersion;
  table->header().record_bytes = 17;
  EXPECT_EQ(ClientTable::Adopt(Duplicate(*table)).error().code, zp::Errc::kInvalid);
  EXPECT_EQ(ClientTable::Adopt(zp::UniqueFd()).error().code, zp::Errc::kInvalid);
  EXPECT_EQ(ClientTable::Adopt(zp::CreateMemfd("no-table", 100).value()).error().code, zp::Errc::kInvalid);
}

}  // namespace
}  // namespace uzswap
