export declare function bundleSuite(extension: string): Promise<string>
