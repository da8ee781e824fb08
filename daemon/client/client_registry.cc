#include "daemon/client/client_registry.h"

namespace uzswap {

void ClientRegistry::Add(std::shared_ptr<Client> client) {
  zp::WriterLock lock(mu_);
  had_any_ = true;
  const uint32_t id = client->id();
  clients_[id] = std::move(client);
}

std::shared_ptr<Client> ClientRegistry::Remove(uint32_t id) {
  zp::WriterLock lock(mu_);
  const auto it = clients_.find(id);
  if (it == clients_.end()) return nullptr;
  auto client = std::move(it->second);
  clients_.erase(it);
  return client;
}

std::shared_ptr<Client> ClientRegistry::Find(uint32_t id) const {
  zp::ReaderLock lock(mu_);
  const auto it = clients_.find(id);
  return it == clients_.end() ? nullptr : it->second;
}

std::vector<std::shared_ptr<Client>> ClientRegistry::All() const {
  zp::ReaderLock lock(mu_);
  std::vector<std::shared_ptr<Client>> all;
  all.reserve(clients_.size());
  for (const auto& [id, client] : clients_) all.push_back(client);
  return all;
}

std::vector<std::shared_ptr<Client>> ClientRegistry::FindPid(pid_t pid) const {
  std::vector<std::shared_ptr<Client>> found;
  for (auto& client : All()) {
    if (client->identity().pid == pid) found.push_back(std::move(client));
  }
  return found;
}

size_t ClientRegistry::size() const {
  zp::ReaderLock lock(mu_);
  return clients_.size();
}

bool ClientRegistry::had_any() const {
  zp::ReaderLock lock(mu_);
  return had_any_;
}

void ClientRegistry::RememberGone(std::string description) {
  zp::WriterLock lock(mu_);
  gone_.push_back(std::move(description));
  if (gone_.size() > kGoneKept) gone_.pop_front();
}

std::vector<std::string> ClientRegistry::Gone() const {
  zp::ReaderLock lock(mu_);
  return {gone_.begin(), gone_.end()};
}

}  // namespace uzswap
