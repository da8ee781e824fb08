// Large structures in java, worked on twice, by two threads. Prints digests; argument: size in units of about a MiB.
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;

public class Objects {
  static final class Record {
    int id, near;
    String name;
    double[] scores = new double[6];
    byte[] blob;
    Map<String, Integer> tags = new HashMap<>();
  }

  static void digest(String label, Iterable<Record> records) throws Exception {
    MessageDigest hash = MessageDigest.getInstance("SHA-256");
    for (Record r : records) {
      hash.update(r.name.getBytes(StandardCharsets.UTF_8));
      hash.update(r.blob);
      long sum = 0;
      for (double s : r.scores) sum = sum * 31 + Double.doubleToLongBits(s);
      for (int v : r.tags.values()) sum += v;
      hash.update(Long.toString(sum).getBytes(StandardCharsets.UTF_8));
    }
    StringBuilder out = new StringBuilder();
    for (byte b : hash.digest()) out.append(String.format("%02x", b));
    System.out.println(label + " " + out.substring(0, 32));
  }

  public static void main(String[] arguments) throws Exception {
    int size = Integer.parseInt(arguments[0]);
    Random random = new Random(9);
    String[] words = new String[4000];
    for (int i = 0; i < words.length; i++) {
      StringBuilder word = new StringBuilder();
      for (int n = 3 + random.nextInt(6); n > 0; n--) word.append((char) ('a' + random.nextInt(22)));
      words[i] = word.toString();
    }
    List<Record> records = new ArrayList<>();
    for (int i = 0; i < size * 1000; i++) {
      Record r = new Record();
      r.id = i;
      r.near = random.nextInt(i + 1);
      r.name = words[random.nextInt(4000)] + " " + words[random.nextInt(4000)] + " " + i;
      for (int n = 0; n < 6; n++) r.scores[n] = random.nextInt(100000) / 7.0;
      r.blob = new byte[random.nextInt(300)];
      if (i % 4 == 0) random.nextBytes(r.blob);
      for (int n = 0; n < 4; n++) r.tags.put(words[random.nextInt(4000)], n);
      records.add(r);
    }
    for (int turn = 1; turn <= 2; turn++) {
      long sum = 0;
      int place = records.size() - 1;
      for (int step = 0; step < records.size() / 3; step++) {
        Record r = records.get(place);
        sum += (long) r.id * (step % 13) + (long) r.scores[step % 6];
        place = (int) ((r.near * 31L + step * 7L + turn) % records.size());
      }
      System.out.println("walk " + turn + " " + sum + " " + place);
      records.sort(Comparator.comparing((Record r) -> r.name));
      final int factor = turn;
      Thread[] threads = new Thread[2];
      for (int t = 0; t < 2; t++) {
        final int half = t;
        threads[t] = new Thread(() -> {
          for (int i = half; i < records.size(); i += 2) {
            Record r = records.get(i);
            for (int n = 0; n < 6; n++) r.scores[n] = Math.floor(r.scores[n] * 3 + factor);
            r.name = r.name + factor;
            r.tags.merge("turn", factor, Integer::sum);
          }
        });
        threads[t].start();
      }
      for (Thread t : threads) t.join();
      digest("records " + turn, records);
    }
  }
}
