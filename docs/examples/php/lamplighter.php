<?php
// A small client for PHP 8 with the curl extension. Copy it into your project.

declare(strict_types=1);

/** The edge refused a request. `problem` is the decoded body of the answer (RFC 9457). */
final class LamplighterError extends RuntimeException
{
    public function __construct(public readonly array $problem, int $status)
    {
        parent::__construct(($problem['code'] ?? "http_$status") . ': ' . ($problem['detail'] ?? 'no text'), $status);
    }
}

final class Lamplighter
{
    public function __construct(private string $url, private string $key, private string $language = 'en')
    {
        $this->url = rtrim($url, '/');
    }

    /**
     * Submit a job with files. `$input` holds the other fields, `$files` paths by the name of their field.
     *
     * The same `$idempotencyKey` with the same job makes no second job, so a request whose answer was lost can be sent
     * again.
     */
    public function submit(
        string $endpoint,
        array $input,
        array $files = [],
        array $fields = [],
        ?string $idempotencyKey = null,
    ): array {
        $form = ['job' => json_encode(['endpoint' => $endpoint, 'input' => (object) $input] + $fields, JSON_THROW_ON_ERROR)];
        foreach ($files as $name => $path) {
            $form[$name] = new CURLFile($path, mime_content_type($path) ?: 'application/octet-stream', basename($path));
        }
        $key = $idempotencyKey ?? bin2hex(random_bytes(16));
        return $this->call('POST', '/v1/jobs', $form, ["Idempotency-Key: $key"]);
    }

    /** Wait for the end of a job. Each request is held for up to 30 s, so this does not load the edge. */
    public function wait(string $id, int $timeoutS = 3600): array
    {
        $deadline = time() + $timeoutS;
        do {
            $job = $this->call('GET', '/v1/jobs/' . rawurlencode($id) . '?wait=30');
            if (in_array($job['status'], ['succeeded', 'failed', 'cancelled', 'expired'], true)) {
                return $job;
            }
        } while (time() < $deadline);
        throw new RuntimeException("job $id has not ended after $timeoutS s; it goes on");
    }

    /** Save an output. Its URL works without the key for about an hour: a browser may get it as it is. */
    public function download(array $job, string $name, string $path): void
    {
        foreach ($job['output']['files'] ?? [] as $file) {
            if ($file['name'] === $name) {
                $target = fopen($path, 'wb');
                $this->send('GET', $file['url'], null, [], [CURLOPT_RETURNTRANSFER => false, CURLOPT_FILE => $target]);
                fclose($target);
                return;
            }
        }
        throw new RuntimeException("job {$job['id']} has no output $name");
    }

    /** Send any request of the HTTP API. `$body`: fields of a form, or a string of JSON. */
    public function call(string $method, string $path, array|string|null $body = null, array $headers = []): array
    {
        $answer = $this->send($method, $path, $body, $headers);
        return $answer === '' ? [] : json_decode($answer, true, flags: JSON_THROW_ON_ERROR);
    }

    private function send(string $method, string $path, array|string|null $body, array $headers, array $options = []): string
    {
        if (is_string($body)) {
            $headers[] = 'Content-Type: application/json';
        }
        $curl = curl_init(str_starts_with($path, '/') ? $this->url . $path : $path);
        curl_setopt_array($curl, $options + [
            CURLOPT_CUSTOMREQUEST => $method,
            CURLOPT_RETURNTRANSFER => true,
            CURLOPT_CONNECTTIMEOUT => 10,
            CURLOPT_HTTPHEADER => ["Authorization: Bearer {$this->key}", "Accept-Language: {$this->language}", ...$headers],
        ] + ($body === null ? [] : [CURLOPT_POSTFIELDS => $body]));
        $answer = curl_exec($curl);
        if ($answer === false) {
            throw new RuntimeException("no answer from {$this->url}: " . curl_error($curl));
        }
        $status = curl_getinfo($curl, CURLINFO_RESPONSE_CODE);
        if ($status >= 400) {
            throw new LamplighterError(json_decode((string) $answer, true) ?? [], $status);
        }
        return (string) $answer;
    }
}

/**
 * Return the job of a webhook, or null if the signature is not ours or is older than five minutes.
 *
 * `$body` must be the bytes as they came. `$headers` are by lower-case name.
 */
function lamplighter_webhook_job(string $body, array $headers, string $secret): ?array
{
    [$id, $at] = [$headers['webhook-id'] ?? '', $headers['webhook-timestamp'] ?? ''];
    if (abs(time() - (int) $at) > 300) {
        return null;
    }
    $key = base64_decode(substr($secret, strlen('whsec_')), true);
    $expected = base64_encode(hash_hmac('sha256', "$id.$at.$body", $key, true));
    foreach (explode(' ', $headers['webhook-signature'] ?? '') as $signature) {
        if (hash_equals("v1,$expected", $signature)) {
            return json_decode($body, true, flags: JSON_THROW_ON_ERROR)['data'];
        }
    }
    return null;
}
