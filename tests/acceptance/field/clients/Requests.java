import java.io.BufferedReader;
import java.io.ByteArrayInputStream;
import java.io.InputStreamReader;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;

/** Sends each line of standard input as a request; offers HTTP/2 as the client does by default. */
public class Requests {
    public static void main(String[] args) throws Exception {
        String token = Files.readString(Path.of("token"));
        HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_2).build();
        BufferedReader input =
            new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        StringBuilder output = new StringBuilder();
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            String[] fields = line.split("\t");
            byte[] body = fields[3].getBytes(StandardCharsets.UTF_8);
            // A publisher of unknown length is sent in chunks.
            BodyPublisher publisher = fields[2].equals("chunked")
                ? BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(body))
                : BodyPublishers.ofByteArray(body);
            HttpRequest request = HttpRequest.newBuilder(URI.create(args[0] + fields[1]))
                .timeout(Duration.ofSeconds(30))
                .header("Content-Type", "application/json")
                .header("Authorization", "Bearer " + token)
                .header("X-Request-ID", fields[0])
                .POST(publisher)
                .build();
            try {
                HttpResponse<String> response = client.send(request, BodyHandlers.ofString());
                String answer = response.body().replace("\n", " ").replace("\t", " ");
                output.append(fields[0] + "\t" + response.statusCode() + "\t" + answer + "\n");
            } catch (java.io.IOException error) {
                output.append(fields[0] + "\t" + error + "\t\n");
            }
        }
        System.out.print(output);
    }
}
